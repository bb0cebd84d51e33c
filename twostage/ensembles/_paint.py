"""From scores of regions to classes of pixels, a strip of output rows at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.ops.fusion import RowResizer, geometric_mean, mix_strip, strips
from twostage.types import VOID


@dataclass(frozen=True)
class ScoredMasks:
    """What is mixed into pixels.

    scores: (N, K) float32, zero in rows that take no part; masks: (N, H, W) float32 or bool; used: (N,) bool,
    the rows that take part.
    """

    scores: Tensor
    masks: Tensor
    used: Tensor


@dataclass(frozen=True)
class DenseMap:
    """logits: (K, h, w) float32, already divided by their temperature."""

    logits: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the map."""
        return self.logits.shape[1], self.logits.shape[2]


@dataclass(frozen=True)
class PixelRules:
    """How pixels are settled after the masks are mixed.

    dense_weight: share of the dense map in [0, 1]; uncovered: what unclaimed pixels get, "argmax", "dense" or
    "void"; coverage: a mask claims the pixels where it is above this; silence: whether a picture without any
    mask that takes part is left to the dense map, or void, instead of getting class 0.
    """

    dense_weight: float
    uncovered: str
    coverage: float
    silence: bool


class Painter:
    """Class maps of one picture. At least one of `regions` and `dense` must be given."""

    def __init__(
        self, rules: PixelRules, regions: ScoredMasks | None, dense: DenseMap | None, size_hw: tuple[int, int]
    ) -> None:
        self._rules, self._dense, self._size_hw = rules, dense, size_hw
        self._silent = rules.silence and regions is not None and not bool(regions.used.any())
        # A silent picture with a dense map is a dense picture.
        self._regions = None if self._silent and dense is not None else regions
        if regions is not None:
            self._of_masks = RowResizer((regions.masks.shape[1], regions.masks.shape[2]), size_hw)
            self._reach = None if rules.uncovered == "argmax" else reach(regions)
        if dense is not None:
            self._of_dense = RowResizer(dense.grid, size_hw)

    def label(
        self, num_classes: int, keep_scores: bool, keep_confidence: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(H, W) int32 labels; the (K, H, W) float32 map they came from, and the (H, W) float32 share of the
        winner in it, where they are to be kept.
        """
        shown = self._dense.logits if self._dense is not None else None
        device = shown.device if self._regions is None and shown is not None else self._masks.device
        labels = torch.empty(self._size_hw, dtype=torch.int32, device=device)
        kept = torch.empty(num_classes, *self._size_hw, device=device) if keep_scores else None
        sure = torch.empty(self._size_hw, device=device) if keep_confidence else None
        for first, last in strips(num_classes, self._size_hw):
            class_map, void = self._strip(first, last)
            value, best = class_map.max(dim=0)  # on CPUs several times faster than argmax over the first axis
            best = best.int()
            if sure is not None:
                sure[first:last] = value / class_map.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
            labels[first:last] = best if void is None else best.masked_fill_(void, VOID)
            if kept is not None:
                kept[:, first:last] = class_map
        return labels, kept, sure

    @property
    def _masks(self) -> Tensor:
        assert self._regions is not None
        return self._regions.masks

    def _strip(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """(K, r, W) float32, and (r, W) bool where nothing speaks, or None if every pixel has a label."""
        if self._regions is None:
            return self._dense_probs(first, last), None
        class_map = mix_strip(self._regions.scores, self._regions.masks, self._of_masks, first, last)
        if self._rules.dense_weight > 0 and self._dense is not None:
            dense = self._dense_probs(first, last)
            class_map = _shares(geometric_mean(_shares(class_map), dense, self._rules.dense_weight))
        if self._silent:
            return class_map, torch.ones_like(class_map[0], dtype=torch.bool)
        if self._reach is None:
            return class_map, None
        free = self._of_masks.strip(self._reach, first, last)[0] <= self._rules.coverage
        if self._rules.uncovered == "void":
            return class_map, free
        return torch.where(free, self._dense_probs(first, last), class_map), None

    def _dense_probs(self, first: int, last: int) -> Tensor:
        assert self._dense is not None
        return self._of_dense.strip(self._dense.logits, first, last).softmax(dim=0)


def _shares(class_map: Tensor) -> Tensor:
    """Sums to one over the classes; a pixel without any evidence is undecided, not class 0."""
    total = class_map.sum(dim=0, keepdim=True)
    return torch.where(total > 0, class_map / total, 1.0 / len(class_map))


def reach(regions: ScoredMasks) -> Tensor:
    """(1, H, W) float32: how strongly the strongest mask that takes part claims each pixel."""
    strongest = torch.zeros(regions.masks.shape[1:], device=regions.masks.device)
    for row in regions.used.nonzero()[:, 0].tolist():
        torch.maximum(strongest, regions.masks[row].float(), out=strongest)
    return strongest[None]
