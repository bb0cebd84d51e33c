"""Repairing and smoothing of patch tokens before and after the last block.

Shapes: B images, h x w grid, N = h * w patches, D width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from twostage.readout.knobs import Smoothing
from twostage.readout.record import Record


def repaired(
    patches: Tensor, grid: tuple[int, int], how: Literal["lof", "class_over_self"], record: Record
) -> Tensor:
    """(B, N, D) patches entering the last block, those that stand out replaced by their neighbours' mean."""
    raise NotImplementedError


def smoothed(patches: Tensor, record: Record, smoothing: Smoothing, likeness: dict[int, Tensor]) -> Tensor:
    """(B, N, D): every patch the mean of those like it."""
    raise NotImplementedError
