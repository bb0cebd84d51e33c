"""Dense readouts beside the bare image tower: time in turns, and memory under sliding windows."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_common import DTYPES, Machine, interleave
from torch import Tensor, nn

from twostage.clip.model import ClipModel
from twostage.dense.readout import ReadoutDense
from twostage.errors import TwostageError
from twostage.readout import presets, vit
from twostage.readout.engine import Tower
from twostage.types import TextBank

ENCODER, NATIVE = "open_clip visual()", "Tower.native"
"""The bare tower twice: open_clip's own forward, and ours with every token read out."""


def dense(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every readout in each number format, then the memory."""
    names = chosen(arguments.presets)
    for name in arguments.memory_presets:
        presets.find(name)
    clip = ClipModel.load(arguments.model, pretrained="random", seed=0, device=arguments.device)
    width, height = arguments.size
    cell = Tower(clip.visual).cell_hw
    if width % cell[1] or height % cell[0] or min(width, height) < 1:
        raise TwostageError(f"--size {width}x{height}: expected multiples of a patch, {cell[1]}x{cell[0]}.")
    machine = asdict(Machine.here())
    results = {name: _times(clip.to_dtype(DTYPES[name]), names, arguments) for name in arguments.dtype}
    memory = [
        _memory(arguments, preset, kind, count)
        for preset in (arguments.memory_presets if arguments.windows else ())
        for kind in arguments.dtype
        for count in arguments.windows
    ]
    return {
        "benchmark": "dense",
        "model": f"{arguments.model}, random weights",
        "image_size_wh": [width, height],
        "tokens": 1 + width // cell[1] * (height // cell[0]),
        "batch": arguments.batch,
        "classes": arguments.classes,
        "rounds": arguments.rounds,
        "device": arguments.device,
        "machine": machine,
        "results": results,
        "memory": memory,
    }


def chosen(wanted: list[str] | None) -> list[str]:
    """Names of readouts: those asked for, or all that look once and need neither a second model nor masks.

    Raises:
        TwostageError: an unknown name, or one that needs what is not here.
    """
    able = [p.name for p in presets.PRESETS.values() if p.single_pass and not (p.guest or p.regions)]
    for name in wanted or ():
        found = presets.find(name)
        if found.guest or found.regions:
            raise TwostageError(
                f"--presets: {name} needs a second model or masks. Those that can be measured alone and look "
                f"once: {', '.join(able)}."
            )
    return wanted or able


def encoder(visual: Any, pixels: Tensor) -> nn.Module:
    """open_clip's own tower with its position table brought to the grid of these pixels."""
    own: nn.Module = copy.deepcopy(visual)
    grid = tuple(edge // cell for edge, cell in zip(pixels.shape[-2:], vit_cell(visual), strict=True))
    table = own.get_parameter("positional_embedding").detach()
    old = tuple(visual.grid_size)
    patches = table[1:].T.unflatten(1, old)[None].float()
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)[0]
    full = torch.cat([table[:1], patches.flatten(1).T.to(table.dtype)])
    own.register_parameter("positional_embedding", nn.Parameter(full, requires_grad=False))
    return own.eval()


def vit_cell(visual: Any) -> tuple[int, int]:
    """Height and width of a patch."""
    vit.require_vit(visual)
    return int(visual.patch_size[0]), int(visual.patch_size[1])


def _times(clip: ClipModel, names: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians and ratios of one number format."""
    width, height = arguments.size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(arguments.batch, 3, height, width, generator=generator)
    pixels = pixels.to(clip.device, clip.dtype)
    text = _text(arguments.classes, clip)
    plain, tower = encoder(clip.visual, pixels), Tower(clip.visual)
    runs: dict[str, Callable[[], object]] = {
        ENCODER: lambda: plain(pixels),
        NATIVE: lambda: tower.native(pixels),
    }
    for name in names:
        head = ReadoutDense(ReadoutDense.Config(preset=name), clip)
        runs[name] = lambda head=head: head.logits(pixels, text)  # type: ignore[misc]
    with torch.inference_mode():
        timings = interleave({name: _settled(run, clip) for name, run in runs.items()}, arguments.rounds)
    wall = {name: statistics.median(values) for name, values in timings.wall.items()}
    rows = {
        name: {
            "median_wall_s": wall[name],
            "ratio_to_encoder": timings.ratio(name, ENCODER, "wall"),
            "ratio_to_encoder_cpu_time": timings.ratio(name, ENCODER, "cpu"),
            "ratio_to_native": timings.ratio(name, NATIVE, "wall"),
            "ratio_to_native_cpu_time": timings.ratio(name, NATIVE, "cpu"),
        }
        for name in names
    }
    return {
        "encoder": {"what": ENCODER, "median_wall_s": wall[ENCODER]},
        "native": {
            "what": NATIVE,
            "median_wall_s": wall[NATIVE],
            "ratio_to_encoder": timings.ratio(NATIVE, ENCODER, "wall"),
            "ratio_to_encoder_cpu_time": timings.ratio(NATIVE, ENCODER, "cpu"),
        },
        "presets": rows,
        "wall_s": dict(timings.wall),
        "cpu_s": dict(timings.cpu),
    }


def _settled(run: Callable[[], object], clip: ClipModel) -> Callable[[], object]:
    """The same, finished when it returns on a GPU too."""

    def whole() -> None:
        run()
        if clip.device.type == "cuda":
            torch.cuda.synchronize(clip.device)

    return whole


def _text(classes: int, clip: ClipModel) -> TextBank:
    rows = torch.randn(classes, clip.dim, generator=torch.Generator().manual_seed(1))
    return TextBank(F.normalize(rows, dim=1), torch.arange(classes), classes).to(clip.device)


def _memory(arguments: argparse.Namespace, preset: str, kind: str, windows: int) -> dict[str, Any]:
    """What a process of its own says of its memory."""
    wanted = {
        "model": arguments.model,
        "device": arguments.device,
        "dtype": kind,
        "preset": preset,
        "windows": windows,
        "classes": min(arguments.classes, 21),
    }
    program = Path(__file__).with_name("bench_memory.py")
    ran = subprocess.run(
        [sys.executable, str(program), json.dumps(wanted)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise TwostageError(f"bench_memory.py failed: {ran.stderr.strip()}")
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    for kind, result in report["results"].items():
        base, native = result["encoder"], result["native"]
        lines.append(
            f"{kind}, {report['batch']} x {report['tokens']} tokens: "
            + ", ".join(f"{one['what']} {one['median_wall_s'] * 1000:.1f} ms" for one in (base, native))
            + f" ({native['ratio_to_encoder']:.3f}, cpu {native['ratio_to_encoder_cpu_time']:.3f})"
        )
        lines.append(f"{'preset':18}{'ms':>9}{'ratio':>8}{'(cpu)':>8}{'to native':>11}{'(cpu)':>8}")
        lines += [
            f"{name:18}{row['median_wall_s'] * 1000:9.1f}{row['ratio_to_encoder']:8.3f}"
            f"{row['ratio_to_encoder_cpu_time']:8.3f}{row['ratio_to_native']:11.3f}"
            f"{row['ratio_to_native_cpu_time']:8.3f}"
            for name, row in result["presets"].items()
        ]
    for row in report["memory"]:
        lines.append(
            f"{row['preset']}, {row['dtype']}, {row['windows']} windows of {row['image_size']} px: "
            f"{row['above_model_mib']:.0f} MiB above the model's {row['model_mib']:.0f}, the class map alone "
            f"is {row['map_mib']:.0f}"
        )
    return "\n".join(lines)
