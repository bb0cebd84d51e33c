"""Logits of a per-pixel network at the size of the label map, a strip of rows at a time.

Two bilinear steps, as in the paper: from cells to the pixels that the network saw, cut there, then to the
label map's size. Neither a K x H x W nor a D x H x W map exists at any time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twostage.ops.fusion import RowResizer
from twostage.types import DenseScores, PixelScores


class Enlarged:
    """Rows of one image's class logits at another size.

    scores: where they are PixelScores with embeddings, the logits of a place are the cosines with the
    *enlarged* embedding there: products and length are enlarged apart and divided afterwards, which is the
    same, because products are linear. (A class with synonyms takes its best one in the cell, not afterwards.)
    Plain DenseScores cover the image exactly and take one step.
    """

    def __init__(self, scores: DenseScores, size_hw: tuple[int, int]) -> None:
        self._maps, self._size_hw = scores.logits, size_hw
        self._embeddings: Tensor | None = None
        grid = (scores.logits.shape[1], scores.logits.shape[2])
        self._inner: RowResizer | None = None
        self._outer = RowResizer(grid, size_hw)
        if isinstance(scores, PixelScores):
            full = (grid[0] * scores.stride, grid[1] * scores.stride)
            self._inner, self._outer = RowResizer(grid, full), RowResizer(scores.image_hw, size_hw)
            self._embeddings = scores.embeddings
        self._weights = None if self._embeddings is None else _lengths(self._embeddings)

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._maps.device

    @property
    def num_maps(self) -> int:
        """How many maps of the output size take as much room as what a strip holds; `strips` asks for it."""
        source, (height, width) = self._outer.source_hw, self._size_hw
        larger = max(1.0, source[0] * source[1] / (height * width))
        channels = max(len(self._maps), 0 if self._embeddings is None else len(self._embeddings))
        return math.ceil(channels * larger)

    def rows(self, first: int, last: int) -> Tensor:
        """(K, last - first, output width) float32 logits."""
        logits = self._resized(self._maps, first, last, self._weights)
        if self._embeddings is None:
            return logits
        return logits / _lengths(self._resized(self._embeddings, first, last))

    def _resized(self, maps: Tensor, first: int, last: int, weights: Tensor | None = None) -> Tensor:
        """Output rows of (C, h, w) maps, times (h, w) weights where they are given."""
        if self._inner is None:
            return self._outer.strip(maps, first, last)
        begin, end = self._outer.source_rows(first, last)
        top, bottom = self._inner.source_rows(begin, end)
        rows = maps[:, top:bottom].float()
        seen = self._inner.resize(rows if weights is None else rows * weights[top:bottom], begin, end)
        return self._outer.resize(seen[..., : self._outer.source_hw[1]], first, last)


def _lengths(embeddings: Tensor) -> Tensor:
    """(D, h, w) -> (h, w), never zero."""
    lengths: Tensor = torch.linalg.vector_norm(embeddings, dim=0)
    return lengths.clamp(min=1e-12)
