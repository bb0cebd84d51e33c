"""One sliding-window reading in a process of its own, and the most memory that it took: JSON in, JSON out.

    python tools/bench_memory.py '{"model": "ViT-B-16", "device": "cpu", "dtype": "fp32", ...}'

Used by `tools/benchmark.py dense`. A process of its own, because a peak cannot be told from those before it.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import torch
import torch.nn.functional as F
from bench_common import DTYPES
from bench_peak import MIB, peak, start

from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.types import TextBank


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
    before = start(on_gpu)
    head.predict([image], text)
    return {
        **wanted,
        "windows": across**2,
        "image_size": edge,
        "chunk": config.chunk,
        "model_mib": model / MIB,
        "above_model_mib": max(peak(on_gpu) - before, 0) / MIB,
        "map_mib": len(rows) * edge * edge * 4 / MIB,
        "counter": "torch.cuda" if on_gpu else "resident set",
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
