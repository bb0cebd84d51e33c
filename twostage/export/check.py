"""Is an exported folder what it was made from? Tensors and label maps of both, compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from twostage.builder import Builder
from twostage.data.shapes.dataset import ShapesDataset
from twostage.export.deployed import Deployed
from twostage.export.graphs import ClipImageGraph, StageOneGraph, TextStageOneGraph
from twostage.export.manifest import CLIP_IMAGE, STAGE_ONE, ExportError, Manifest
from twostage.export.runtime import Session
from twostage.ops.modes import evaluating
from twostage.predict import System
from twostage.vocabulary import Vocabulary

TOLERANCE = 1e-3
"""Largest difference of a tensor, as a share of its largest number, in fp32."""
EQUAL_LABELS = 0.999
"""Least share of pixels with the same label."""
SCENES = 2
SIZES = ((96, 160), (32, 64))
"""Pixels, rounded up to whole steps of the padding; neither is the size at which the network was traced."""
TEXTS = ((7, 3), (1, 1))
"""Classes, and names of each."""


@dataclass(frozen=True)
class Finding:
    """what: in words; value: a relative difference, or a share of equal labels; good: whether it passes."""

    what: str
    value: float
    good: bool

    def __str__(self) -> str:
        share = f"{100 * self.value:.3f} %" if self.what.startswith("equal") else f"{self.value:.1e}"
        return f"{self.what}: {share}{'' if self.good else '  <- too far'}"


def compare_stage_one(graph: StageOneGraph, folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """Every output at two image sizes, with two numbers of classes and names."""
    session = Session(folder / STAGE_ONE, manifest.files, torch.device("cpu"))
    config, generator = graph.network.config, torch.Generator().manual_seed(0)
    step = config.size_divisibility
    for (height, width), (classes, names) in zip(SIZES, TEXTS, strict=True):
        size_hw = (-(-height // step) * step, -(-width // step) * step)
        fed = {"pixels": torch.randn(1, 3, *size_hw, generator=generator)}
        if isinstance(graph, TextStageOneGraph):
            rows = torch.randn(classes, names, config.embedding_dim, generator=generator)
            fed["text"] = functional.normalize(rows, dim=-1)
        with evaluating(graph), torch.no_grad():
            wanted = dict(zip(graph.outputs, graph(*fed.values()), strict=True))
        words = f", {classes} x {names} words" if "text" in fed else ""
        for name, value in session.run(**fed).items():
            yield _finding(f"stage one {name} at {size_hw[0]} x {size_hw[1]}{words}", value, wanted[name])


def compare_clip_image(graph: ClipImageGraph, folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """The features of one crop and of three."""
    session = Session(folder / CLIP_IMAGE, manifest.files, torch.device("cpu"))
    assert manifest.clip_image is not None
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        pixels = torch.randn(count, 3, *manifest.clip_image.image_size, generator=generator)
        with evaluating(graph), torch.no_grad():
            wanted = graph(pixels)
        yield _finding(f"CLIP features of {count}", session.run(pixels=pixels)["features"], wanted)


def _finding(what: str, found: Tensor, wanted: Tensor) -> Finding:
    if found.shape != wanted.shape:
        raise ExportError(f"{what}: onnxruntime gives {tuple(found.shape)}, torch {tuple(wanted.shape)}.")
    value = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    return Finding(what, value, value <= TOLERANCE)


def compare_labels(builder: Builder, folder: Path, manifest: Manifest, words: Vocabulary) -> Finding:
    """The label maps of drawn scenes, whatever the system makes of them."""
    deployed = Deployed(builder.config, folder, manifest)
    deployed.texts, deployed.clip = builder.texts, builder.clip
    one, other = System(builder.config, builder), System(builder.config, deployed)
    scenes = ShapesDataset("test", length=SCENES)
    same = total = 0
    for index in range(SCENES):
        image = scenes[index].image
        equal = one.segment(image, words).labels == other.segment(image, words).labels
        same, total = same + int(equal.sum()), total + equal.numel()
    share = same / total
    return Finding(f"equal labels on {SCENES} drawn scenes", share, share >= EQUAL_LABELS)
