"""The second stage beside the bare CLIP forward."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench_common import DTYPES, Machine, interleave
from scipy import ndimage
from torch import Tensor

from twostage.classifiers import crops as crop_module
from twostage.classifiers.crops import CropClassifier
from twostage.clip.model import ClipModel
from twostage.types import Proposals, TextBank


def blobs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count, height, width) float32 soft masks as a MaskFormer gives them: see `blob_logits`."""
    logits = blob_logits(count, height // 4, width // 4, seed)
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0].sigmoid()


def blob_logits(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count, height, width) float32 mask logits: blobs whose areas spread evenly in the logarithm between
    0.2 % and 60 % of the picture, smooth at the scale of a cell, not all connected.
    """
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    logits = []
    for share in np.geomspace(0.002, 0.6, count):
        radius = np.sqrt(share * height * width / np.pi)
        stretch = generator.uniform(0.6, 1.6)
        centre = generator.uniform(0.1, 0.9, 2) * (height, width)
        distance = np.hypot((y - centre[0]) * stretch, (x - centre[1]) / stretch) / radius
        ragged = ndimage.gaussian_filter(generator.standard_normal((height, width)), 3)
        logits.append(6 * (1 - distance) + 1.5 * ragged / ragged.std())
    return torch.from_numpy(np.stack(logits)).float().clamp(-20, 20)


class _Stopwatch:
    """Shares of the second stage: wraps the steps that the classifier calls and adds up their time."""

    STEPS = ("binarise", "mask_boxes", "make_canvas", "cut_region", "resize_region")

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def timed(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, adding its time under `name`."""

        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = step(*arguments, **options)
            self.seconds[name] += time.perf_counter() - start
            return result

        return run

    @contextmanager
    def watching(self, classifier: CropClassifier) -> Iterator[None]:
        """Within this block the steps of the crop classifier and the calls of its encoder are timed."""
        places: list[tuple[Any, str]] = [
            *((crop_module, step) for step in self.STEPS),
            (classifier, "encode"),
        ]
        before = [getattr(place, name) for place, name in places]
        for (place, name), function in zip(places, before, strict=True):
            setattr(place, name, self.timed(name, function))
        try:
            yield
        finally:
            for (place, name), function in zip(places, before, strict=True):
                setattr(place, name, function)


def measure_stage_two(clip: ClipModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Ratio, medians and shares for one number format."""
    width, height = arguments.size
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    proposals = Proposals(blobs(arguments.masks, height, width), torch.ones(arguments.masks))
    rows = F.normalize(torch.randn(arguments.classes, clip.dim, generator=generator), dim=1)
    text = TextBank(rows, torch.arange(arguments.classes), arguments.classes)
    classifier = CropClassifier(CropClassifier.Config(chunk=arguments.chunk), clip)
    ready = [pixels.clone() for _, pixels in classifier.chunks([image], [proposals])]

    def bare() -> None:
        for pixels in ready:
            clip.encode_images(pixels)

    def whole() -> None:
        classifier.classify([image], [proposals], text)

    timings = interleave({"clip": bare, "stage_two": whole}, arguments.rounds)
    watch = _Stopwatch()
    start = time.perf_counter()
    with watch.watching(classifier):
        whole()
    total = time.perf_counter() - start
    shares = {step: seconds / total for step, seconds in watch.seconds.items()}
    return {
        "ratio_to_clip_forward": timings.ratio("stage_two", "clip", "wall"),
        "ratio_to_clip_forward_cpu_time": timings.ratio("stage_two", "clip", "cpu"),
        "valid_masks": sum(len(pixels) for pixels in ready),
        "median_wall_s": {name: statistics.median(values) for name, values in timings.wall.items()},
        "median_cpu_s": {name: statistics.median(values) for name, values in timings.cpu.items()},
        "wall_s": dict(timings.wall),
        "shares_of_stage_two": {**shares, "rest": 1 - sum(shares.values())},
    }


def stage_two(arguments: argparse.Namespace) -> dict[str, Any]:
    """The second stage beside the bare CLIP forward, in each number format."""
    clip = ClipModel.load(arguments.model, pretrained="random", seed=0)
    width, height = arguments.size
    areas = blobs(arguments.masks, height, width).gt(0.5).flatten(1).float().mean(dim=1)
    results = {}
    for name in arguments.dtype:
        results[name] = measure_stage_two(clip.to_dtype(DTYPES[name]), arguments)
    return {
        "benchmark": "stage2",
        "model": f"{arguments.model}, random weights",
        "image_size_wh": [width, height],
        "masks": {
            "count": arguments.masks,
            "kind": "soft float32 blobs, areas even in the logarithm",
            "area_share_min_median_max": torch.quantile(areas, torch.tensor([0.0, 0.5, 1.0])).tolist(),
        },
        "chunk": arguments.chunk,
        "classes": arguments.classes,
        "rounds": arguments.rounds,
        "machine": asdict(Machine.here()),
        "results": results,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{'format':8}{'CLIP s':>9}{'stage 2 s':>11}{'ratio':>8}{'(cpu)':>8}   share of stage 2 by step"]
    for name, result in report["results"].items():
        wall = result["median_wall_s"]
        shares = "  ".join(f"{step} {share:.1%}" for step, share in result["shares_of_stage_two"].items())
        lines.append(
            f"{name:8}{wall['clip']:9.2f}{wall['stage_two']:11.2f}{result['ratio_to_clip_forward']:8.3f}"
            f"{result['ratio_to_clip_forward_cpu_time']:8.3f}   {shares}"
        )
    return "\n".join(lines)
