"""How open_clip is called: failing at once where there is no network, saying nothing that we say better."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from unittest import mock
from urllib.parse import urlsplit


def hub_is_reachable() -> bool:
    """Whether the model hub's name resolves. With a proxy the name need not resolve here, so that counts as
    reachable."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def fail_fast_without_network() -> Iterator[None]:
    """Within it, an unreachable hub means that only files already downloaded are found, without retries."""
    try:
        import huggingface_hub.constants  # noqa: F401
    except ImportError:
        yield
        return
    if hub_is_reachable():
        yield
        return
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep open_clip from saying what was asked for (random weights) or our own error says (no download)."""
    root = logging.getLogger()

    def keep(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "initialized randomly" not in said and "Failed to download" not in said

    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
