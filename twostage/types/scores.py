"""Opinions: of each mask, and of every place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from typing_extensions import Self

from twostage.types.base import require, require_image, row_index


@dataclass(frozen=True)
class RegionScores:
    """One classifier's opinion of each proposal.

    logits: (N, K) float32; valid: (N,) bool, False where the mask was empty (the row is kept, its
    numbers mean nothing); no_object: (N,) float32 logit of "none of these", or None; image: (K,) float32, the
    same classifier's logits of the whole image, or None where it does not look at that; looked: (N,) bool,
    the masks that it was really shown, None for all of them.
    """

    logits: Tensor
    valid: Tensor
    no_object: Tensor | None = None
    image: Tensor | None = None
    looked: Tensor | None = None

    def __post_init__(self) -> None:
        require(
            self.logits.ndim == 2, f"RegionScores.logits: expected (N, K), got {tuple(self.logits.shape)}"
        )
        count = len(self.logits)
        require(
            self.valid.shape == (count,) and self.valid.dtype == torch.bool,
            f"RegionScores.valid: expected ({count},) bool, got {tuple(self.valid.shape)} {self.valid.dtype}",
        )
        if self.no_object is not None:
            require(
                self.no_object.shape == (count,),
                f"RegionScores.no_object: expected ({count},), got {tuple(self.no_object.shape)}",
            )
        require(
            self.looked is None or self.looked.shape == (count,),
            f"RegionScores.looked: expected ({count},)",
        )
        require_image("RegionScores", self.image, self.logits.shape[1])

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> RegionScores:
        index = row_index(index)
        no_object = None if self.no_object is None else self.no_object[index]
        looked = None if self.looked is None else self.looked[index]
        valid = self.valid[index]
        return replace(self, logits=self.logits[index], valid=valid, no_object=no_object, looked=looked)

    def of_classes(self, positions: Tensor) -> RegionScores:
        """The opinion of these classes alone; positions: (M,) int64 in the vocabulary."""
        image = None if self.image is None else self.image[positions]
        return replace(self, logits=self.logits[:, positions], image=image)

    def probs(self) -> Tensor:
        """(N, K): softmax over the K classes and "no object" where it is known (dropped *after* the softmax).

        This one place settles the difference between stage one (K + 1) and stage two (K).
        """
        if self.no_object is None:
            return self.logits.float().softmax(dim=-1)
        return torch.cat([self.logits, self.no_object[:, None]], dim=1).float().softmax(dim=-1)[:, :-1]

    def to(self, device: torch.device | str) -> RegionScores:
        """The same scores on another device."""
        return RegionScores(
            self.logits.to(device),
            self.valid.to(device),
            None if self.no_object is None else self.no_object.to(device),
            None if self.image is None else self.image.to(device),
            None if self.looked is None else self.looked.to(device),
        )


@dataclass(frozen=True)
class DenseScores:
    """Class logits for every place of a grid over the whole image.

    logits: (K, h, w) float32 at any resolution; image: (K,) float32 logits of the image as a whole, on the
    same scale, or None.
    """

    logits: Tensor
    image: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require(
            self.logits.ndim == 3, f"DenseScores.logits: expected (K, h, w), got {tuple(self.logits.shape)}"
        )
        require_image(type(self).__name__, self.image, len(self.logits))

    def of_classes(self, positions: Tensor) -> Self:
        """The same map of these classes alone; positions: (M,) int64 in the vocabulary."""
        image = None if self.image is None else self.image[positions]
        return replace(self, logits=self.logits[positions], image=image)

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        image = None if self.image is None else self.image.to(device)
        return replace(self, logits=self.logits.to(device), image=image)


@dataclass(frozen=True)
class WordScores(DenseScores):
    """The same with what every word got, before a class takes its best.

    logits: (K, h, w) float32, the largest over a class's rows; rows: (T, h, w) float32, a map for each row of
    the text bank (the same tensor as logits where every class has one row, in order); class_of: (T,) int64,
    the class of each row.
    """

    rows: Tensor
    class_of: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.rows.ndim == 3 and self.rows.shape[1:] == self.logits.shape[1:],
            f"WordScores.rows: expected (T, {self.logits.shape[1]}, {self.logits.shape[2]}), "
            f"got {tuple(self.rows.shape)}",
        )
        require(
            self.class_of.shape == self.rows.shape[:1],
            f"WordScores.class_of: expected ({len(self.rows)},), got {tuple(self.class_of.shape)}",
        )

    def of_classes(self, positions: Tensor) -> Self:
        """The same map of these classes alone, with their words; positions: (M,) int64 in the vocabulary."""
        kept = super().of_classes(positions)
        own = torch.isin(self.class_of, positions)
        number = torch.full((len(self.logits),), -1, dtype=torch.int64, device=positions.device)
        number[positions] = torch.arange(len(positions), device=positions.device)
        if self.rows is self.logits:
            return replace(kept, rows=kept.logits, class_of=number[positions])
        return replace(kept, rows=self.rows[own], class_of=number[self.class_of[own]])

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        moved = super().to(device)
        rows = moved.logits if self.rows is self.logits else self.rows.to(device)
        return replace(moved, rows=rows, class_of=self.class_of.to(device))


@dataclass(frozen=True)
class PixelScores(DenseScores):
    """A trained network's class logits on a grid of cells that begins at the top left corner of the image.

    logits: (K, h, w) float32; stride: side of a cell in pixels; image_hw: the image in these pixels, which
    the last rows and columns of cells may reach beyond; embeddings: (D, h, w) float32, or None. Where they
    are given the logits are cosines with them, meant to be taken anew from the enlarged embeddings.
    """

    stride: int = 1
    image_hw: tuple[int, int] = (0, 0)
    embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        grid, image = self.logits.shape[1:], self.image_hw
        require(
            all(0 < pixels <= cells * self.stride for pixels, cells in zip(image, grid, strict=True)),
            f"PixelScores: {tuple(grid)} cells of {self.stride} pixels do not cover an image of {image}",
        )
        if self.embeddings is not None:
            require(
                self.embeddings.ndim == 3 and self.embeddings.shape[1:] == grid,
                f"PixelScores.embeddings: expected (D, {grid[0]}, {grid[1]}), "
                f"got {tuple(self.embeddings.shape)}",
            )

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        moved = super().to(device)
        return moved if self.embeddings is None else replace(moved, embeddings=self.embeddings.to(device))
