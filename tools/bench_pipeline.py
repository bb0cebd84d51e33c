"""The whole pipeline, from a photo to labels, beside the yardstick and the floors."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_common import DTYPES, Machine, Timings, interleave
from bench_modes import EXACT, HALVED, WEIGHT, Mode, modes
from bench_peak import MIB, peak, start
from bench_scene import Scene, make_scene
from bench_yardstick import Yardstick
from torch import Tensor

from twostage.clip.towers import is_vit
from twostage.maskformer.lean import make_lean
from twostage.segmenter import Segmenter

YARDSTICK = "yardstick"


def pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every mode beside the yardstick, in one interleaved run; then the peaks, each in its own process."""
    scene = _scene(vars(arguments))
    pixels = scene.seen_at.shape[1] * scene.seen_at.shape[2]
    chosen = modes(arguments.avoiding, "bf16", "fp32", pixels, is_vit(scene.clip.visual), arguments.compiled)
    built = {name: mode.segmenter(scene.network, scene.clip, scene.size) for name, mode in chosen.items()}
    yardstick = Yardstick(scene.network, scene.clip, scene.words, scene.size, WEIGHT)
    labels: dict[str, Tensor] = {}

    def keep(name: str, run: Callable[[], Tensor]) -> Callable[[], None]:
        def remember() -> None:
            labels[name] = run()

        return remember

    whole = lambda segmenter: lambda: segmenter.segment([scene.photo], scene.words)[0].labels
    runs: dict[str, Callable[[], object]] = {
        YARDSTICK: keep(YARDSTICK, lambda: yardstick.label(scene.photo)),
        **{name: keep(name, whole(segmenter)) for name, segmenter in built.items()},
        **_floors(scene, built["exact, bf16 CLIP"]),
    }
    timings = interleave(runs, arguments.rounds)
    measured = () if arguments.no_peaks else (YARDSTICK, *EXACT, *HALVED)
    peaks = {name: _peak_of(arguments, name) for name in measured}
    return {
        "benchmark": "pipeline",
        "photo_wh": list(arguments.size),
        "test_size_hw": list(scene.seen_at.shape[1:]),
        "masks": arguments.masks,
        "classes": arguments.classes,
        "networks": f"{arguments.backbone} MaskFormer and CLIP {arguments.model}, random weights; masks and "
        "stage one's scores given",
        "rounds": arguments.rounds,
        "machine": asdict(Machine.here()),
        "modes": {name: _row(name, mode, timings, labels, peaks) for name, mode in chosen.items()},
        "yardstick": {
            "median_wall_s": _median(timings, YARDSTICK),
            "peak_mib_above_model": peaks.get(YARDSTICK),
        },
        "floors": _ratios(timings),
        "stages": {
            name: _stages(segmenter, scene) for name, segmenter in built.items() if name in (*EXACT, *HALVED)
        },
        "wall_s": dict(timings.wall),
        "cpu_s": dict(timings.cpu),
    }


def _scene(wanted: dict[str, Any]) -> Scene:
    keys = ("masks", "classes", "backbone", "model", "short_edge")
    return make_scene(tuple(wanted["size"]), **{key: wanted[key] for key in keys})


def _floors(scene: Scene, exact: Segmenter) -> dict[str, Callable[[], object]]:
    """What cannot be done without: CLIP on ready crops, stage one's network, and one copy of the masks; and
    beside the first, stage two as a whole.
    """
    assert exact.proposals is not None
    assert exact.classifier is not None
    classifier, half = exact.classifier, scene.clip.to_dtype(DTYPES["bf16"])
    found = exact.proposals.propose([scene.seen_at], scene.words.text)
    lean = make_lean(scene.network.twin())
    ready, masks = scene.ready_crops, found[0].masks

    def stage_one() -> None:
        with torch.inference_mode():
            lean(scene.seen_at[None], last_only=True)

    return {
        "floor: CLIP, fp32": lambda: [scene.clip.encode_images(crops) for crops in ready],
        "floor: CLIP, bf16": lambda: [half.encode_images(crops) for crops in ready],
        "stage two, bf16": lambda: classifier.classify([scene.seen_at], found, scene.words.text),
        "floor: stage one, fp32": stage_one,
        "floor: copy of the masks": masks.clone,
    }


def _row(
    name: str, mode: Mode, timings: Timings, labels: dict[str, Tensor], peaks: dict[str, float]
) -> dict[str, Any]:
    same = labels[name].cpu() == labels[YARDSTICK]
    return {
        "speedup_over_yardstick": 1 / timings.ratio(name, YARDSTICK, "wall"),
        "speedup_over_yardstick_cpu_time": 1 / timings.ratio(name, YARDSTICK, "cpu"),
        "equal_labels": float(same.double().mean()),
        "peak_mib_above_model": peaks.get(name),
        "images_per_second": 1 / _median(timings, name),
        "median_wall_s": _median(timings, name),
        "settings": asdict(mode),
    }


def _median(timings: Timings, name: str) -> float:
    return statistics.median(timings.wall[name])


def _ratios(timings: Timings) -> dict[str, Any]:
    floors = [name for name in timings.wall if name.startswith("floor")]
    found: dict[str, Any] = {name: {"median_wall_s": _median(timings, name)} for name in floors}
    found["stage two, bf16"] = {
        "median_wall_s": _median(timings, "stage two, bf16"),
        "ratio_to_clip": timings.ratio("stage two, bf16", "floor: CLIP, bf16", "wall"),
        "ratio_to_clip_cpu_time": timings.ratio("stage two, bf16", "floor: CLIP, bf16", "cpu"),
    }
    return found


def _stages(segmenter: Segmenter, scene: Scene) -> dict[str, float]:
    """Seconds of each stage in one run."""
    parts = (
        (segmenter.proposals, "propose"),
        (segmenter.classifier, "classify"),
        (segmenter.ensemble, "merge"),
    )
    spent: dict[str, float] = {}

    def timed(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            begin = time.perf_counter()
            made = step(*given)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
            return made

        return run

    for part, name in parts:
        setattr(part, name, timed(name, getattr(part, name)))
    begin = time.perf_counter()
    segmenter.segment([scene.photo], scene.words)
    total = time.perf_counter() - begin
    for part, name in parts:
        delattr(part, name)
    return {**spent, "rest": total - sum(spent.values()), "total": total}


def _peak_of(arguments: argparse.Namespace, name: str) -> float:
    """MiB of one mode in a process of its own."""
    wanted = {
        key: value for key, value in vars(arguments).items() if isinstance(value, (int, str, tuple, bool))
    }
    command = [sys.executable, str(Path(__file__)), json.dumps({**wanted, "mode": name})]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The memory of {name!r} could not be measured:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def _measure_peak(wanted: dict[str, Any]) -> float:
    scene = _scene(wanted)
    pixels = scene.seen_at.shape[1] * scene.seen_at.shape[2]
    if wanted["mode"] == YARDSTICK:
        yardstick = Yardstick(scene.network, scene.clip, scene.words, scene.size, WEIGHT)
        run = lambda: yardstick.label(scene.photo)
    else:
        mode = modes(True, "bf16", "fp32", pixels, is_vit(scene.clip.visual), True)[wanted["mode"]]
        segmenter = mode.segmenter(scene.network, scene.clip, scene.size)
        run = lambda: segmenter.segment([scene.photo], scene.words)[0].labels
    scene.__dict__.pop("ready_crops", None)
    before = start(on_gpu=False)
    run()
    return max(peak(on_gpu=False) - before, 0) / MIB


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'mode':38}{'s':>7}{'speedup':>9}{'(cpu)':>8}{'equal labels':>14}{'peak MiB':>10}"]
    yardstick = report["yardstick"]
    lines.append(
        _line(YARDSTICK, yardstick["median_wall_s"], 1.0, 1.0, 1.0, yardstick["peak_mib_above_model"])
    )
    for name, row in report["modes"].items():
        values = [
            row[key] for key in ("median_wall_s", "speedup_over_yardstick", "speedup_over_yardstick_cpu_time")
        ]
        lines.append(_line(name, *values, row["equal_labels"], row["peak_mib_above_model"]))
    lines += [f"{name:38}{row['median_wall_s']:7.2f}" for name, row in report["floors"].items()]
    lines.append(
        f"stage two over bare CLIP, bf16: {report['floors']['stage two, bf16']['ratio_to_clip']:.3f}"
    )
    return "\n".join(lines)


def _line(name: str, seconds: float, wall: float, cpu: float, equal: float, mib: float | None) -> str:
    told = "" if mib is None else f"{mib:10.0f}"
    return f"{name:38}{seconds:7.2f}{wall:9.2f}{cpu:8.2f}{equal:14.4%}{told}"


if __name__ == "__main__":
    print(_measure_peak(json.loads(sys.argv[1])))
