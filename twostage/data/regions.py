"""Regions of a data set: the pixels of one class in one photo, found once and drawn class by class."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from twostage.data.errors import DataError
from twostage.data.prefetch import prefetch
from twostage.data.region_crops import RegionCutter
from twostage.data.sample import Sample, SegmentationDataset
from twostage.progress import Progress

logger = logging.getLogger(__name__)


class Region(NamedTuple):
    """photo: index in the data set, or a row of a table; label: position of the class in the vocabulary."""

    photo: int
    label: int


@dataclass(frozen=True)
class RegionBatch:
    """pixels: (B, 3, h, w) float32, normalised for CLIP; classes: (B,) int64; image_ids: for messages."""

    pixels: Tensor
    classes: Tensor
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> RegionBatch:
        """A part of the batch, for gradient accumulation."""
        return RegionBatch(self.pixels[part], self.classes[part], self.image_ids[part])


def find_regions(dataset: SegmentationDataset, indices: Sequence[int]) -> list[Region]:
    """Every (photo, class present) of the photos at `indices`, in order.

    A data set that knows the classes of its photos (`classes_present()`: positions in its vocabulary, one
    sequence a photo) is believed; otherwise every label map is read once.

    Raises:
        DataError: a photo has no labels.
    """
    known = getattr(dataset, "classes_present", None)
    if known is not None:
        present = known()
        return [Region(index, int(label)) for index in indices for label in present[index]]
    found: list[Region] = []
    progress = Progress(logger, "Regions", len(indices))
    for done, (index, sample) in enumerate(zip(indices, prefetch(dataset, indices), strict=True), start=1):
        found += [Region(index, label) for label in _present(labels_of(sample))]
        progress.at(done)
    return found


def cut_regions(
    dataset: SegmentationDataset, wanted: Mapping[int, Sequence[int] | None], cutter: RegionCutter
) -> Iterator[tuple[Region, Tensor]]:
    """Test crops of the photos in `wanted`: of these labels, or (None) of every class present.

    Yields each region with its crop, (3, h, w) float32; those of which the recipe leaves nothing are skipped.
    """
    for index, sample in zip(wanted, prefetch(dataset, list(wanted)), strict=True):
        image, labels = cutter.at_size(sample.image, labels_of(sample))
        chosen = wanted[index]
        for label in _present(labels) if chosen is None else chosen:
            crop = cutter.test(image, labels == label)
            if crop is not None:
                yield Region(index, label), crop


def labels_of(sample: Sample) -> Tensor:
    """(H, W) labels.

    Raises:
        DataError: there are none.
    """
    if sample.labels is None:
        raise DataError(
            f"{sample.source or sample.image_id} has no labels, which prompts are learned and judged by."
        )
    return sample.labels


def _present(labels: Tensor) -> list[int]:
    """Classes in a label map, ascending, void left out."""
    return [int(label) for label in torch.unique(labels).tolist() if label >= 0]


def some_of_each(regions: Sequence[Region], count: int, seed: int) -> list[Region]:
    """At most `count` regions of each class, drawn without replacement, in order."""
    by_class: dict[int, list[Region]] = defaultdict(list)
    for region in regions:
        by_class[region.label].append(region)
    chosen: list[Region] = []
    for label, found in sorted(by_class.items()):
        rng = np.random.default_rng([seed, label])
        chosen += [found[i] for i in rng.choice(len(found), min(count, len(found)), replace=False)]
    return sorted(chosen)


class RegionPlan:
    """Which region stands at which place of an endless training: `per_class` of every class a pass.

    fresh False: drawn once, with replacement, and every pass shows the same in another order (as published).
    fresh True: every pass draws anew, without replacement where a class has enough.

    empty: classes that have no region at all; nothing stands for them.

    Raises:
        DataError: no class, or no region of any.
    """

    def __init__(
        self, regions: Sequence[Region], labels: Sequence[int], per_class: int, seed: int, fresh: bool
    ) -> None:
        """labels: the classes to learn, as positions in the vocabulary; other regions are left out."""
        self.by_class: dict[int, list[Region]] = defaultdict(list)
        for region in regions:
            self.by_class[region.label].append(region)
        if not labels:
            raise DataError("Regions: the list of classes to learn is empty.")
        self.labels, self._per_class, self._seed, self._fresh = list(labels), per_class, seed, fresh
        self.empty = [label for label in labels if not self.by_class.get(label)]
        if len(self.empty) == len(labels):
            raise DataError("Regions: none of the classes to learn occurs in the photos that were looked at.")
        self._drawn: tuple[int, list[Region]] | None = None

    def __len__(self) -> int:
        """Regions of one pass."""
        return self._per_class * (len(self.labels) - len(self.empty))

    def at(self, place: int) -> Region:
        """The region at this place, counted from 0 over all passes."""
        turn = place // len(self)
        if self._drawn is None or self._drawn[0] != turn:
            self._drawn = (turn, self._draw(turn))
        return self._drawn[1][place % len(self)]

    def another(self, region: Region, rng: np.random.Generator) -> Region:
        """One more of the same class, where a region turned out to be of no use."""
        choices = self.by_class[region.label]
        return choices[int(rng.integers(len(choices)))]

    def _draw(self, turn: int) -> list[Region]:
        rng = np.random.default_rng([self._seed, turn] if self._fresh else self._seed)
        drawn: list[Region] = []
        for label in self.labels:
            choices = self.by_class.get(label, [])
            if choices:
                replace = not self._fresh or len(choices) < self._per_class
                picked = rng.choice(len(choices), self._per_class, replace=replace)
                drawn += [choices[number] for number in picked]
        order = np.random.default_rng([self._seed, 1, turn]).permutation(len(drawn))
        return [drawn[number] for number in order]
