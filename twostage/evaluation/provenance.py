"""Where a number comes from: versions, vocabulary, settings and machine, to be stored beside every result."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from twostage import registry
from twostage.evaluation.metrics import MIOU_CONVENTION
from twostage.vocabulary import Vocabulary

PACKAGES = (
    "twostage",
    "torch",
    "torchvision",
    "open_clip_torch",
    "numpy",
    "pillow",
    "opencv-python-headless",
)


def provenance(
    vocabulary: Vocabulary,
    *,
    dataset: str,
    device: str | torch.device = "cpu",
    clip: Mapping[str, Any] | None = None,
    dense: Mapping[str, Any] | None = None,
    templates: Sequence[str] = (),
    resize_backend: str = "",
    seeds: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Everything that a reader needs to make a number again, as plain data.

    clip: what is known of the image-text model (name, weights, digest, precision); dense: of the dense head
    (`dense_facts`); templates: the prompts, "{}" marks the name; resize_backend: the library and filter that
    resized the photos; seeds: by purpose; config: the resolved configuration; command: the program's
    arguments, default those of this process.
    """
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv if command is None else command),
        "versions": versions(),
        "git_revision": git_revision(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dataset": dataset,
        "vocabulary": {
            "digest": vocabulary.digest,
            "classes": len(vocabulary),
            "names": [list(synonyms) for synonyms in vocabulary.names],
            "seen": None if vocabulary.seen is None else _flagged(vocabulary),
        },
        "miou_convention": dict(MIOU_CONVENTION),
        "clip": dict(clip or {}),
        "dense": dict(dense or {}),
        "templates": list(templates),
        "resize_backend": resize_backend,
        "seeds": dict(seeds or {}),
        "config": dict(config or {}),
    }


def dense_facts(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a dense head says of itself (its Config's `facts`): which preset, its knobs and settings, and a
    digest of them; without a name nothing.
    """
    if not name:
        return {}
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    told = getattr(registry.make_config(registry.find("dense", name), given), "facts", dict)
    return {"component": name, **told()}


def versions() -> dict[str, str | None]:
    """Python and the packages that can change a number, None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_revision(folder: str | Path | None = None) -> str | None:
    """The commit of the checkout that holds the package (or `folder`); "+changes" says that files differ.

    None where there is no git, no checkout, or the package is installed elsewhere.
    """
    place = Path(__file__).parents[2] if folder is None else Path(folder)
    if not (place / ".git").exists():
        return None
    head = _git(place, "rev-parse", "HEAD")
    if not head:
        return None
    return head + ("+changes" if _git(place, "status", "--porcelain", "--untracked-files=no") else "")


def _git(place: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(place), *arguments], capture_output=True, text=True, timeout=10, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(device: str | torch.device) -> str:
    """ "cuda:0 (NVIDIA H200)" or "cpu (x86_64)"."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.processor() or platform.machine()})"


def _flagged(vocabulary: Vocabulary) -> list[str]:
    """The first names of the seen classes."""
    return [name for name, seen in zip(vocabulary.shown, vocabulary.seen or (), strict=True) if seen]
