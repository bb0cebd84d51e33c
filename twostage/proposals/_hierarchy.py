"""Greedy merging of neighbouring regions, the frame of every bottom-up source of masks.

R regions to begin with, E pairs of neighbours, M merges; merge i makes region R + i. The cheapest pair is
merged first (ties: the pair with the smaller numbers), on a heap whose entries die with their regions, so
that the work is about E log E whatever the number of regions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.registry import ComponentError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Rescore = Callable[[int, int, int, Integers], Floats]
"""Called with both merged regions, their new number and its neighbours (ascending): the new pairs' costs."""


@dataclass(frozen=True)
class Borders:
    """pairs: (E, 2) regions that share an edge, smaller first, ascending; length: (E,) shared pixel edges;
    total: (E,) the sum of a pixel map along the border, zeros where none was given.
    """

    pairs: Integers
    length: Floats
    total: Floats


@dataclass(frozen=True)
class Hierarchy:
    """count: R; merges: (M, 2) regions in the order of merging; costs: (M,) what each of them cost."""

    count: int
    merges: Integers
    costs: Floats

    @property
    def heights(self) -> Floats:
        """(M,) the largest cost so far, so that a region never dissolves before its parts."""
        return np.maximum.accumulate(self.costs) if len(self.costs) else self.costs

    def roots(self, merges: int | None = None) -> Integers:
        """(R,) the region that each first region belongs to after so many merges (None: all)."""
        done = len(self.merges) if merges is None else merges
        root = np.arange(self.count + done)
        for number in range(done - 1, -1, -1):
            root[self.merges[number]] = root[self.count + number]
        return root[: self.count]

    def at(self, level: float) -> Integers:
        """(R,) the same after all merges whose height is at most `level`."""
        return self.roots(int(np.searchsorted(self.heights, level, side="right")))


def borders(labels: Integers, strength: Floats | None = None) -> Borders:
    """Who lies beside whom: labels (H, W) of 0..R-1, neighbours share a pixel edge (not a corner).

    strength: (H, W), taken along the border as the mean of the two pixels on either side.
    """
    count = int(labels.max()) + 1
    keys, values = [], []
    for first, second in (
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
    ):
        one, other = labels[first], labels[second]
        differ = one != other
        low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
        keys.append(low.astype(np.int64) * count + high)
        if strength is not None:
            values.append((strength[first][differ] + strength[second][differ]) / 2)
    found, place = np.unique(np.concatenate(keys), return_inverse=True)
    length = np.bincount(place, minlength=len(found)).astype(np.float64)
    weights = np.concatenate(values) if values else np.zeros(len(place))
    total = np.bincount(place, weights=weights, minlength=len(found)).astype(np.float64)
    return Borders(np.stack([found // count, found % count], axis=1), length, total)


def merge_greedily(count: int, pairs: Integers, costs: Floats, limit: float, rescore: Rescore) -> Hierarchy:
    """Merge the cheapest pair again and again, as long as it costs no more than `limit`."""
    neighbours: list[set[int]] = [set() for _ in range(count)]
    for first, second in pairs.tolist():
        neighbours[first].add(second)
        neighbours[second].add(first)
    alive = [True] * count
    heap = [
        (cost, first, second) for cost, (first, second) in zip(costs.tolist(), pairs.tolist(), strict=True)
    ]
    heapq.heapify(heap)
    merges, paid = [], []
    while heap:
        cost, first, second = heapq.heappop(heap)
        if cost > limit:
            break
        if not (alive[first] and alive[second]):
            continue
        merged = len(alive)
        around = sorted((neighbours[first] | neighbours[second]) - {first, second})
        alive[first] = alive[second] = False
        alive.append(True)
        neighbours.append(set(around))
        merges.append((first, second))
        paid.append(cost)
        new = rescore(first, second, merged, np.asarray(around, dtype=np.int64))
        for other, price in zip(around, new.tolist(), strict=True):
            neighbours[other] -= {first, second}
            neighbours[other].add(merged)
            heapq.heappush(heap, (price, other, merged))
    return Hierarchy(count, np.asarray(merges, dtype=np.int64).reshape(-1, 2), np.asarray(paid, np.float64))


def in_reading_order(labels: NDArray[Any]) -> Integers:
    """The same partition (H, W), its regions numbered 0, 1, ... by their first pixel in reading order."""
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[place].reshape(labels.shape)


def masks_of(labels: Integers) -> NDArray[np.bool_]:
    """(H, W) of 0..R-1 -> (R, H, W) bool, one mask a region."""
    return np.equal(labels[None], np.arange(int(labels.max()) + 1)[:, None, None])


def pixels(images: Sequence[Tensor], who: str) -> list[NDArray[np.uint8]]:
    """RGB uint8 (3, H, W) tensors -> (H, W, 3) arrays on the CPU.

    Raises:
        ComponentError: another kind or shape, or a side of no pixels.
    """
    for position, image in enumerate(images):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ComponentError(
                f"{who}: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)} "
                f"{image.dtype}; give it before any normalisation."
            )
    return [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
