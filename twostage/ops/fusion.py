"""Weighing probabilities against each other and spreading region scores over pixels.

N regions, K classes, H x W pixels of the masks, r rows of an output map that is made strip by strip, so that
a K x H x W map at output size never has to exist.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ops.masks import mean_on_grid

STRIP_BYTES = 16 * 2**20
"""Size of one strip of class maps: small enough for the processor's cache, large enough to keep its cores
busy.
"""


def geometric_mean(first: Tensor, second: Tensor, weight: Tensor | float) -> Tensor:
    """first^(1 - weight) * second^weight, not renormalised; weight broadcasts, and 0^0 is 1."""
    return first ** (1 - weight) * second**weight


def class_weights(
    weight: float, seen_weight: float, seen: tuple[bool, ...] | None, num_classes: int, device: torch.device
) -> Tensor:
    """(K,) float32: `seen_weight` for seen classes and `weight` for the others, which are all where flags are
    None.
    """
    flags = seen if seen is not None else (False,) * num_classes
    return torch.tensor(
        [seen_weight if flag else weight for flag in flags], dtype=torch.float32, device=device
    )


def pool_logits(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of dense logits under soft masks.

    logits: (K, h, w); masks: (N, H, W) float or bool -> (N, K) float32 and (N,) bool, False (and zeros) where
    a mask covers nothing.
    """
    share = mean_on_grid(masks, (logits.shape[1], logits.shape[2])).flatten(1)
    total = share.sum(dim=1, keepdim=True)
    pooled = (share @ logits.float().flatten(1).T) / total.clamp(min=torch.finfo(torch.float32).tiny)
    return pooled, total[:, 0] > 0


def class_maps(rows: Tensor, class_of: Tensor, num_classes: int) -> Tensor:
    """(B, T, ...) scores of text rows -> (B, K, ...): a class with synonyms takes its best row at every
    place.
    """
    if torch.equal(class_of.cpu(), torch.arange(num_classes)):
        return rows
    out = rows.new_full((len(rows), num_classes, *rows.shape[2:]), -torch.inf)
    index = class_of.to(rows.device).reshape(1, -1, *([1] * (rows.ndim - 2))).expand(rows.shape)
    return out.scatter_reduce(1, index, rows, reduce="amax")


def strips(
    num_maps: int, size_hw: tuple[int, int], budget_bytes: int = STRIP_BYTES
) -> Iterator[tuple[int, int]]:
    """Row ranges [first, last) over the map, each of at most `budget_bytes` for num_maps float32 maps."""
    height, width = size_hw
    rows = max(1, budget_bytes // (4 * max(1, num_maps) * width))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


class RowResizer:
    """Bilinear resizing (align_corners False, no antialias) of maps, a strip of output rows at a time.

    source_hw, size_hw: sizes before and after. The strips together equal one torch `interpolate` of the whole
    map up to rounding, and only the source rows that a strip needs are touched.
    """

    def __init__(self, source_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
        self.source_hw, self.size_hw = source_hw, size_hw
        self._same = source_hw == size_hw
        place = (torch.arange(size_hw[0], dtype=torch.float64) + 0.5) * (source_hw[0] / size_hw[0]) - 0.5
        place = place.clamp(0, source_hw[0] - 1)
        self._low = place.floor().long()
        self._high = (self._low + 1).clamp(max=source_hw[0] - 1)
        self._share = (place - self._low).float()

    def source_rows(self, first: int, last: int) -> tuple[int, int]:
        """The source rows [begin, end) behind the output rows [first, last)."""
        if self._same:
            return first, last
        return int(self._low[first]), int(self._high[last - 1]) + 1

    def resize(self, rows: Tensor, first: int, last: int) -> Tensor:
        """rows: (C, end - begin, W), just the source rows named by `source_rows` -> (C, last - first, output
        width).
        """
        if self._same:
            return rows
        begin = int(self._low[first])
        device = rows.device
        low = rows[:, (self._low[first:last] - begin).to(device)]
        high = rows[:, (self._high[first:last] - begin).to(device)]
        mixed = low.lerp_(high, self._share[first:last, None].to(device))
        if rows.shape[2] == self.size_hw[1]:
            return mixed
        size = (last - first, self.size_hw[1])
        return F.interpolate(mixed[None], size, mode="bilinear", align_corners=False)[0]

    def strip(self, maps: Tensor, first: int, last: int) -> Tensor:
        """maps: (C, H, W) any kind -> float32 output rows [first, last)."""
        begin, end = self.source_rows(first, last)
        return self.resize(maps[:, begin:end].float(), first, last)


def mix_strip(scores: Tensor, masks: Tensor, resizer: RowResizer, first: int, last: int) -> Tensor:
    """Output rows of `sum_n scores[n, k] * masks[n]`, (K, last - first, output width) float32.

    scores: (N, K); masks: (N, H, W) float or bool. Mixing and bilinear resizing are both linear and commute,
    so the fewer maps of the two kinds are resized.
    """
    if len(scores) == 0:
        return torch.zeros(scores.shape[1], last - first, resizer.size_hw[1], device=scores.device)
    begin, end = resizer.source_rows(first, last)
    source = masks[:, begin:end].float()
    if len(scores) <= scores.shape[1]:
        return _mix(scores, resizer.resize(source, first, last))
    return resizer.resize(_mix(scores, source), first, last)


def _mix(scores: Tensor, masks: Tensor) -> Tensor:
    # Numbers below the smallest normal one add nothing that shows, and make the product several times slower.
    scores = torch.where(scores < torch.finfo(torch.float32).tiny, 0.0, scores)
    return (scores.T @ masks.flatten(1)).view(scores.shape[1], *masks.shape[1:])
