"""What each way to save work costs in labels with trained networks: the embedded world's, on drawn scenes."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from bench_common import Machine
from bench_modes import WEIGHT, modes
from bench_yardstick import Yardstick
from torch import Tensor

from twostage.builder import Builder
from twostage.clip.towers import is_vit
from twostage.config import load_config
from twostage.data import catalog
from twostage.data.image_io import read_image
from twostage.data.photo_list import find_photos
from twostage.data.sample import Sample
from twostage.predict import config_path
from twostage.progress import Progress
from twostage.segmenter import Segmenter, Words
from twostage.views import TestSize

logger = logging.getLogger(__name__)
YARDSTICK = "yardstick"
EXACT = "exact, fp32"
Run = Callable[[Tensor], Tensor]


def world(arguments: argparse.Namespace) -> dict[str, Any]:
    """Labels and times of every mode on the same scenes, in turns within a scene."""
    runs, looks = _runs(arguments)
    scenes = _Photos(arguments.photos) if arguments.photos else catalog.get(arguments.data, "datasets")
    count = min(arguments.scenes, len(scenes))
    tally = {name: _Tally() for name in runs}
    progress = Progress(logger, arguments.data, count)
    for number in range(count):
        photo = scenes[number].image
        labels: dict[str, Tensor] = {}
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            begin = time.perf_counter()
            labels[name] = runs[name](photo)
            tally[name].seconds.append(time.perf_counter() - begin)
        for name, one in tally.items():
            one.add(labels[name], labels[EXACT], looks.get(name))
        progress.at(number + 1)
    slow = tally[YARDSTICK].seconds
    return {
        "benchmark": "world",
        "data": "photos" if arguments.photos else arguments.data,
        "scenes": count,
        "system": "shipped, with its dense branch"
        if arguments.shipped
        else "the paper's: stage one and crops",
        "compared_with": EXACT,
        "machine": asdict(Machine.here()),
        "modes": {name: one.row(slow) for name, one in tally.items()},
    }


class _Photos:
    """All photos of some folders, read one at a time."""

    def __init__(self, places: list[str]) -> None:
        self._paths = find_photos(places, Path("nowhere"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        return Sample(read_image(path), None, path.stem, str(path))


class _Tally:
    """What is counted of one mode."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.same = self.pixels = self.looked = self.masks = self.identical = 0

    def add(self, labels: Tensor, base: Tensor, look: dict[str, int] | None) -> None:
        same = int((labels == base).sum())
        self.same, self.pixels = self.same + same, self.pixels + base.numel()
        self.identical += same == base.numel()
        if look is not None:
            self.looked, self.masks = self.looked + look["looked"], self.masks + look["proposals"]

    def row(self, base: list[float]) -> dict[str, Any]:
        pairs = zip(base, self.seconds, strict=True)
        return {
            "equal_labels": self.same / self.pixels,
            "identical_scenes": self.identical,
            "masks_looked_at": self.looked / self.masks if self.masks else None,
            "speedup_over_yardstick": statistics.median(a / b for a, b in pairs),
            "median_wall_s": statistics.median(self.seconds),
        }


def _runs(arguments: argparse.Namespace) -> tuple[dict[str, Run], dict[str, dict[str, int]]]:
    """Photo -> labels of each mode, and the number of masks that each looked at last."""
    builder = Builder(load_config(config_path("shapes"), [] if arguments.shipped else ["DENSE.NAME="]))
    words = builder.words(catalog.get(arguments.data, "datasets").vocabulary)
    network, size = builder.trained.network, TestSize(builder.config.input.min_size_test)
    clip = builder.clip
    if arguments.vit:  # stage one keeps the words that it was trained with
        other = Builder(load_config(config_path("shapes"), ["DENSE.NAME=", "CLIP.MODEL=twostage-mini-vit"]))
        clip, words = other.clip, replace(words, text=other.text(words.vocabulary), stage_one=words.text)
    yardstick = Yardstick(network, clip, words, size, WEIGHT)
    runs: dict[str, Run] = {YARDSTICK: yardstick.label}
    looks: dict[str, dict[str, int]] = {}
    for name, mode in modes(True, "fp32", "fp32", 160 * 160, is_vit(clip.visual)).items():
        segmenter = mode.segmenter(network, clip, size)
        if arguments.shipped:
            whole = builder.segmenter()
            segmenter = replace(segmenter, dense=whole.dense, ensemble=whole.ensemble)
        runs[name] = _labeller(segmenter, words, looks.setdefault(name, {}))
    for run in runs.values():
        run(torch.zeros(3, 96, 96, dtype=torch.uint8))
    return runs, looks


def _labeller(segmenter: Segmenter, words: Words, look: dict[str, int]) -> Run:
    def label(photo: Tensor) -> Tensor:
        [made] = segmenter.segment([photo], words)
        masks = int(str(made.info["proposals"]))
        look.update(proposals=masks, looked=int(str(made.info.get("looked", masks))))
        return made.labels

    return label


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'mode':40}{'equal labels':>14}{'identical':>11}{'masks':>8}{'speedup':>9}"]
    for name, row in report["modes"].items():
        share = row["masks_looked_at"]
        lines.append(
            f"{name:40}{row['equal_labels']:14.3%}{row['identical_scenes']:11}"
            f"{'' if share is None else f'{share:.0%}':>8}{row['speedup_over_yardstick']:9.2f}"
        )
    return "\n".join(lines)
