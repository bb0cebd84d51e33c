"""One sliding-window reading in a process of its own, and the most memory that it took: JSON in, JSON out.

    python tools/bench_memory.py '{"model": "ViT-B-16", "device": "cpu", "dtype": "fp32", ...}'

Used by `tools/benchmark.py dense`. A process of its own, because a peak cannot be told from those before it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_common import DTYPES

from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.types import TextBank

MIB = 2**20


def measure(wanted: dict[str, Any]) -> dict[str, Any]:
    """Sizes in MiB. windows: rounded to a square number of windows, half overlapping, of the tower's size."""
    clip = ClipModel.load(wanted["model"], pretrained="random", seed=0, device=wanted["device"])
    clip = clip.to_dtype(DTYPES[wanted["dtype"]])
    window, across = min(clip.image_size), max(round(math.sqrt(wanted["windows"])), 1)
    stride = window // 2
    edge = window + (across - 1) * stride
    config = ReadoutDense.Config(preset=wanted["preset"], short_edge=edge, window=window, stride=stride)
    head = ReadoutDense(config, clip)
    rows = torch.randn(wanted["classes"], clip.dim, generator=torch.Generator().manual_seed(1))
    text = TextBank(F.normalize(rows, dim=1), torch.arange(len(rows)), len(rows))
    image = torch.randint(0, 256, (3, edge, edge), dtype=torch.uint8)
    on_gpu = clip.device.type == "cuda"
    model = sum(p.numel() * p.element_size() for p in [*clip.visual.parameters(), *clip.visual.buffers()])
    before = _start(on_gpu)
    head.predict([image], text)
    return {
        **wanted,
        "windows": across**2,
        "image_size": edge,
        "chunk": config.chunk,
        "model_mib": model / MIB,
        "above_model_mib": max(_peak(on_gpu) - before, 0) / MIB,
        "map_mib": len(rows) * edge * edge * 4 / MIB,
        "counter": "torch.cuda" if on_gpu else "resident set",
    }


def _start(on_gpu: bool) -> int:
    """Bytes in use now; the counter of the peak starts anew where the system allows it."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _peak(on_gpu)
    return _status("VmRSS")


def _give_back() -> None:
    """Freed pages that loading left behind go back to the system: the reading would hide in them."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _peak(on_gpu: bool) -> int:
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


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
