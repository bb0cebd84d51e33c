"""Which pixels' labels are settled although CLIP has not looked at every mask yet.

A mask that nobody has looked at gives class k at a pixel something between `low` and `low + spare`, times its
own value there, whatever CLIP would say: probabilities lie in [0, 1], and the mixing is monotone in them. So
the class that is best at the pixel with the least that it can get stays best, if no other can pass it with
the most that it can get. Bilinear resizing has weights in [0, 1] that sum to one and keeps such an order.
With a dense map the same holds after both sides are weighed by it, for every class alike.

N masks, K classes, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.ensembles._paint import DenseMap, PixelRules, ScoredMasks, reach
from twostage.ops.fusion import RowResizer, geometric_mean, mix_strip, strips
from twostage.ops.sampling import BilinearSampler
from twostage.types import RegionScores

MARGIN = 2e-6
"""Share of the best score by which it has to lead: what float32 sums over masks may differ by."""
NOTHING = 1e-9
"""Share of the best score below which what is still to come is lost in the rounding of the sum."""


@dataclass(frozen=True)
class ScoreBounds:
    """low: (N, K) float32, the least that a mask gives a class; spare: (N, K), what may come on top of it,
    zero in the rows that have been looked at.
    """

    low: Tensor
    spare: Tensor


class PixelBounds:
    """What is known of the pixels of one picture, as more and more masks are looked at."""

    def __init__(
        self,
        rules: PixelRules,
        regions: ScoredMasks,
        score: Callable[[RegionScores, Tensor], ScoreBounds],
        dense: DenseMap | None,
        size_hw: tuple[int, int],
    ) -> None:
        """regions: masks and which take part (their scores are not used); score: the bounds from a
        classifier's scores and which of its rows count, (N,) bool; size_hw: of the label map.
        """
        self._rules, self._masks, self._score, self._size_hw = rules, regions.masks, score, size_hw
        self._dense = dense if dense is not None and rules.dense_weight > 0 else None
        self._reach = None if rules.uncovered == "argmax" else reach(regions)

    def tell(self, regions: RegionScores, looked: Tensor) -> None:
        """What the classifier has said so far; looked: (N,) bool, the rows that are its own. The others may
        hold anything.
        """
        self._scores = self._score(regions, looked)
        self._pending = self._scores.spare.amax(dim=1) > 0

    @property
    def spare(self) -> Tensor:
        """(N,) float32, the most that each mask may still add to a class, at a place where it is 1."""
        return self._scores.spare.amax(dim=1)

    @torch.no_grad()
    def unsettled(self) -> Tensor:
        """(P,) int64, the pixels (row * width + column) whose label may still change."""
        mask_hw = (self._masks.shape[1], self._masks.shape[2])
        rows = RowResizer(mask_hw, self._size_hw)
        of_dense = None if self._dense is None else RowResizer(self._dense.grid, self._size_hw)
        spare, pending = self._scores.spare[self._pending], self._masks[self._pending]
        found = []
        for first, last in strips(2 * self._scores.low.shape[1], self._size_hw):
            low = mix_strip(self._scores.low, self._masks, rows, first, last).flatten(1)
            more = mix_strip(spare, pending, rows, first, last).flatten(1)
            dense = None
            if of_dense is not None and self._dense is not None:
                dense = of_dense.strip(self._dense.logits, first, last).flatten(1)
            covered = None if self._reach is None else rows.strip(self._reach, first, last).flatten()
            open_here = self._open(low, more, dense, covered)
            found.append(open_here.nonzero()[:, 0] + first * self._size_hw[1])
        return torch.cat(found)

    @torch.no_grad()
    def still_unsettled(self, among: Tensor) -> Tensor:
        """The same among these pixels alone, (P,) of an earlier answer; a pixel that is settled stays so."""
        spare, pending = self._scores.spare[self._pending], self._masks[self._pending]
        mask_hw = (self._masks.shape[1], self._masks.shape[2])
        found = []
        for few in among.split(2**14):
            take = BilinearSampler(mask_hw, self._size_hw, few)
            low = self._scores.low.T @ take(self._masks)
            more = spare.T @ take(pending)
            dense = None
            if self._dense is not None:
                dense = BilinearSampler(self._dense.grid, self._size_hw, few)(self._dense.logits)
            found.append(few[self._open(low, more, dense, None)])
        return torch.cat(found) if found else among

    def _open(self, low: Tensor, more: Tensor, dense: Tensor | None, covered: Tensor | None) -> Tensor:
        """low, more: (K, P); dense: (K, P) logits; covered: (P,) -> (P,) bool, whose label may change."""
        least, most = low, low + more
        if dense is not None:
            probs = dense.softmax(dim=0)
            least = geometric_mean(least, probs, self._rules.dense_weight)
            most = geometric_mean(most, probs, self._rules.dense_weight)
        best, winner = least.max(dim=0)
        most.scatter_(0, winner[None], 0.0)
        settled = best > (1 + MARGIN) * most.amax(dim=0)
        settled |= more.amax(dim=0) <= NOTHING * low.amax(dim=0)
        if covered is not None:
            settled |= covered <= self._rules.coverage
        return ~settled
