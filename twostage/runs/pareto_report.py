"""What a comparison of region classifiers leaves behind: pareto.json, a table, and pareto.png."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from twostage.clip.precision import has_amx
from twostage.config import Config
from twostage.data.atomic import replacing
from twostage.data.sample import SegmentationDataset
from twostage.evaluation import provenance, report
from twostage.evaluation.metrics import compute
from twostage.runs.ablation_results import aligned
from twostage.runs.pareto import Measured, Runner
from twostage.visualize.files import write_picture
from twostage.visualize.pareto_plot import Panel, Point, frontier, plot

Row = Mapping[str, Any]
Clock = Literal["wall", "cpu"]
"""The time that passed, or processor time of the process, which other work on the machine disturbs less."""
_PREFIX: dict[Clock, str] = {"wall": "", "cpu": "cpu_"}
_HEAD: tuple[str, ...] = (
    "classifier",
    "mIoU",
    "seen",
    "unseen",
    "hIoU",
    "stage two ms",
    "times",
    "whole ms",
    "times",
)
_HEAD += ("equal labels %", "crops")


def rows(found: Measured, dataset: SegmentationDataset) -> list[dict[str, Any]]:
    """Plain data of each candidate: accuracy in percent, seconds a photo of stage two alone and of all
    stages (`cpu_*`: processor time of the process), how many times as fast as the first candidate, percent of
    pixels that have the first candidate's label, crops a photo.
    """
    judged = dataset.vocabulary if dataset.vocabulary.seen is not None else found.words.vocabulary
    made = []
    for runner in found.runners:
        numbers = compute(runner.confusion, judged).as_dict()
        entry: dict[str, Any] = {
            "system": runner.candidate.name,
            "component": runner.candidate.slot.name,
            "options": runner.candidate.slot.options,
            "dtype": runner.candidate.dtype,
            **{name: numbers[name] for name in ("seen", "unseen", "hIoU", "mIoU", "pAcc")},
            "equal_labels": 100 * runner.equal / found.pixels,
            "crops_per_image": runner.crops / found.images,
        }
        for clock, prefix in _PREFIX.items():
            for part, seconds in _seconds(runner, found, clock).items():
                base = _seconds(found.runners[0], found, clock)[part]
                entry[f"{prefix}{part}_s"] = seconds
                entry[f"{prefix}speedup_{part}"] = base / max(seconds, 1e-9)
        made.append(entry)
    return made


def _seconds(runner: Runner, found: Measured, clock: str) -> dict[str, float]:
    """Seconds a photo by one clock: of stage two, and of everything."""
    second, merge, before = (getattr(one, clock) for one in (runner.stage_two, runner.merge, found.before))
    return {"stage_two": second / found.images, "whole": (second + merge + before) / found.images}


def table(entries: Sequence[Row], clock: Clock = "wall") -> str:
    """Markdown, a line a classifier; an asterisk marks those that nothing beats in accuracy and time."""
    prefix, what = _PREFIX[clock], _accuracy(entries)
    best = frontier([(entry[f"{prefix}whole_s"], entry[what]) for entry in entries])
    lines = [list(_HEAD)]
    for number, entry in enumerate(entries):
        accuracy = [_number(entry[name]) for name in ("mIoU", "seen", "unseen", "hIoU")]
        times = [
            text
            for part in ("stage_two", "whole")
            for text in (
                f"{1000 * entry[f'{prefix}{part}_s']:.1f}",
                f"{entry[f'{prefix}speedup_{part}']:.2f}",
            )
        ]
        last = [f"{entry['equal_labels']:.2f}", f"{entry['crops_per_image']:.1f}"]
        lines.append([entry["system"] + (" *" if number in best else ""), *accuracy, *times, *last])
    return "\n".join(aligned(lines, len(_HEAD) - 1))


def _accuracy(entries: Sequence[Row]) -> str:
    """hIoU, or mIoU where no class is called seen."""
    return "hIoU" if all(entry["hIoU"] is not None for entry in entries) else "mIoU"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write(
    folder: Path, config: Config, dataset: SegmentationDataset, found: Measured, rounds: int, clock: Clock
) -> list[dict[str, Any]]:
    """Write pareto.json (both clocks), pareto.md and pareto.png below a folder; gives the rows."""
    entries = rows(found, dataset)
    told = provenance.provenance(
        found.words.vocabulary,
        dataset=dataset.name,
        device=found.device,
        clip={"name": config.clip.model, "weights": config.clip.pretrained},
        seeds={"run": config.seed},
        config=dataclasses.asdict(config),
    )
    machine = {"amx": has_amx(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    before = {clock: getattr(found.before, clock) / found.images for clock in ("wall", "cpu")}
    report.write_results(
        folder / "pareto.json",
        entries,
        told,
        images=found.images,
        rounds=rounds,
        before_stage_two_s=before,
        skipped=found.skipped,
        machine=machine,
    )
    write_picture(folder / "pareto.png", picture(entries, dataset.name, found.images, clock))
    with replacing(folder / "pareto.md") as stream:
        stream.write((table(entries, clock) + "\n").encode())
    return entries


def picture(entries: Sequence[Row], name: str, images: int, clock: Clock = "wall") -> Any:
    """Two plots side by side, (H, W, 3) uint8: accuracy against the time of stage two, and of everything."""
    prefix, what = _PREFIX[clock], _accuracy(entries)
    kind = "processor time" if clock == "cpu" else "time"
    panels = [
        Panel(
            f"{title}: {what} against {kind} ({name}, {images} photos)",
            f"seconds a photo, {kind}",
            f"{what} %",
            [Point(entry["system"], entry[f"{prefix}{part}_s"], entry[what]) for entry in entries],
        )
        for part, title in (("stage_two", "Stage two alone"), ("whole", "All stages"))
    ]
    return plot(panels)
