"""The most memory that a stretch of work in this process takes."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from pathlib import Path

import torch

MIB = 2**20


def start(on_gpu: bool) -> int:
    """Bytes in use now; the counter of the peak starts anew where the system allows it."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak(on_gpu)
    return _status("VmRSS")


def _give_back() -> None:
    """Freed pages that loading left behind go back to the system: the reading would hide in them."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak(on_gpu: bool) -> int:
    """Bytes at the peak."""
    if on_gpu:
        return int(torch.cuda.max_memory_allocated())
    if Path("/proc/self/status").is_file():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0
