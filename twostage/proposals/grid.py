"""Proposals that look at nothing: the cells of a grid, the plainest rival of every other source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank


@dataclass(frozen=True)
class GridConfig:
    """rows, columns: cells from top to bottom and from left to right, at most one a pixel; levels: each
    further level has half as many rows and columns as the one before, down to a single cell.
    """

    rows: int = 8
    columns: int = 8
    levels: int = 1

    def __post_init__(self) -> None:
        for option in ("rows", "columns", "levels"):
            if not getattr(self, option) >= 1:
                raise ComponentError(
                    f"GridProposals: {option} must be at least 1, got {getattr(self, option)}."
                )


class GridProposals:
    """Bool masks: each level covers every pixel once, cells in reading order, finest level first, all with
    the score 1. Text is ignored.
    """

    Config = GridConfig

    def __init__(self, config: GridConfig) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> GridProposals:
        """Three levels of twelve, two and one cells."""
        return cls(cls.Config(rows=3, columns=4, levels=3))

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) bool on the image's device."""
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Proposals:
        height, width = image.shape[-2:]
        masks = torch.cat([_cells(height, width, *shape) for shape in self._shapes(height, width)])
        return Proposals(masks, torch.ones(len(masks)), source="grid").to(image.device)

    def _shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Rows and columns of each level, each shape once."""
        config = self.config
        found: list[tuple[int, int]] = []
        for level in range(config.levels):
            shape = (
                min(max(config.rows >> level, 1), height),
                min(max(config.columns >> level, 1), width),
            )
            if shape not in found:
                found.append(shape)
        return found


def _cells(height: int, width: int, rows: int, columns: int) -> Tensor:
    """(rows x columns, H, W) bool; sides differ by one pixel at most."""
    row = torch.arange(height) * rows // height == torch.arange(rows)[:, None]
    column = torch.arange(width) * columns // width == torch.arange(columns)[:, None]
    return (row[:, None, :, None] & column[None, :, None, :]).flatten(0, 1)
