"""Small parts of a system that several tests put together; they cost nothing and do not ship."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twostage.types import Proposals, RegionScores, TextBank


class Strips:
    """Proposals: upright strips of equal width, the same for every photo."""

    @dataclass(frozen=True)
    class Config:
        """count: how many; 0 finds nothing."""

        count: int = 3

    def __init__(self, config: Config) -> None:
        self.config = config

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """(count, H, W) bool."""
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Proposals:
        columns = (
            torch.arange(image.shape[2], device=image.device) * max(self.config.count, 1) // image.shape[2]
        )
        numbers = torch.arange(self.config.count, device=image.device)
        masks = (columns[None] == numbers[:, None])[:, None].expand(-1, image.shape[1], -1)
        return Proposals(
            masks.contiguous(), torch.ones(self.config.count, device=image.device), source="strips"
        )


class Colours:
    """Classifier: a mask's mean colour in 0..1, stretched to as many logits as there are classes."""

    @dataclass(frozen=True)
    class Config:
        """factor: on the logits."""

        factor: float = 20.0

    def __init__(self, config: Config, clip: Any = None, device: Any = "cpu", note: str = "default") -> None:
        self.config, self.clip, self.device, self.note = config, clip, device, note

    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """(N, K): K fixed directions in colour space."""
        directions = torch.randn(3, text.num_classes, generator=torch.Generator().manual_seed(0))
        scores = []
        for image, found in zip(images, proposals, strict=True):
            weights = found.masks.float().flatten(1)
            mean = weights @ (image.float().flatten(1).T / 255) / weights.sum(1, keepdim=True).clamp(min=1)
            scores.append(RegionScores(self.config.factor * mean @ directions, weights.sum(1) > 0))
        return scores


class Demanding:
    """Asks for something that nobody has."""

    Config = Strips.Config

    def __init__(self, config: Strips.Config, telescope: object) -> None:
        raise AssertionError("never made")


SYSTEM = """
MODEL: {DEVICE: cpu}
CLIP: {MODEL: twostage-mini-rn, PRETRAINED: random, TEMPLATES: single}
PROPOSALS: {NAME: "tiny_parts:Strips"}
CLASSIFIER: {NAME: "tiny_parts:Colours"}
INPUT: {MIN_SIZE_TEST: 0}
"""
"""A whole system without trained weights, as a configuration file."""


def write_system(folder: Path, more: str = "") -> Path:
    """The configuration file of SYSTEM, with further lines."""
    path = folder / "system.yaml"
    path.write_text(SYSTEM + more, encoding="utf-8")
    return path


def write_photo(path: Path, size_hw: tuple[int, int] = (24, 36), seed: int = 0) -> Path:
    """Noise as a photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size_hw, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def bank(classes: int, dim: int = 16) -> TextBank:
    """Random unit rows, one a class."""
    rows = torch.randn(classes, dim, generator=torch.Generator().manual_seed(classes))
    return TextBank(torch.nn.functional.normalize(rows, dim=1), torch.arange(classes), classes)
