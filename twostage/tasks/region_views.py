"""Training on crops encoded beforehand: a few random crops of each region, whose features all seeds share.

CLIP is frozen, so its features of a crop never change. What is given up is that every update sees a new crop;
what is won is that an update costs a pass through the text tower alone.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from twostage.data.prefetch import prefetch
from twostage.data.region_crops import RegionCutter
from twostage.data.regions import Region, RegionPlan, labels_of
from twostage.data.sample import SegmentationDataset
from twostage.engine import distributed
from twostage.interfaces import ImageTextModel
from twostage.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureBatch:
    """features: (B, D) float32 unit rows; classes: (B,) int64; image_ids: for messages."""

    features: Tensor
    classes: Tensor
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, part: slice) -> FeatureBatch:
        """A part of the batch, for gradient accumulation."""
        return FeatureBatch(self.features[part], self.classes[part], self.image_ids[part])


@dataclass(frozen=True)
class RegionViews:
    """features: (N, D) float32 unit rows on the CPU; rows: Region(row, class) of each; image_ids: N."""

    features: Tensor
    rows: list[Region]
    image_ids: list[str]

    def batches(self, plan: RegionPlan, batch_size: int, start: int) -> Iterator[FeatureBatch]:
        """Endless batches of this process from update `start` on. plan: over `rows`."""
        for iteration in itertools.count(start):
            first = (iteration * distributed.world_size() + distributed.rank()) * batch_size
            drawn = [plan.at(place) for place in range(first, first + batch_size)]
            index = [row for row, _ in drawn]
            classes = torch.tensor([plan.labels.index(label) for _, label in drawn])
            yield FeatureBatch(self.features[index], classes, [self.image_ids[row] for row in index])


def encode_views(
    clip: ImageTextModel,
    dataset: SegmentationDataset,
    regions: Sequence[Region],
    cutter: RegionCutter,
    views: int,
    seed: int,
    chunk: int = 32,
) -> RegionViews:
    """`views` training crops of each region through CLIP, shared among the processes of a run.

    A crop depends on (seed, region, its number) alone; where the recipe leaves nothing of it, none is made.
    chunk: crops in one pass through CLIP.
    """
    by_photo: dict[int, list[int]] = defaultdict(list)
    for region in regions:
        by_photo[region.photo].append(region.label)
    photos = sorted(by_photo)[distributed.rank() :: distributed.world_size()]
    keys: list[tuple[Region, int, str]] = []
    waiting: list[Tensor] = []
    rows: list[Tensor] = []
    progress = Progress(logger, "Crops to learn from", len(photos))
    for done, (photo, sample) in enumerate(zip(photos, prefetch(dataset, photos), strict=True), start=1):
        image, labels = cutter.at_size(sample.image, labels_of(sample))
        for label, number in itertools.product(by_photo[photo], range(views)):
            crop = cutter.train(
                image, labels == label, np.random.default_rng([seed, 3, photo, label, number])
            )
            if crop is not None:
                keys.append((Region(photo, label), number, sample.image_id))
                waiting.append(crop)
        while len(waiting) >= chunk or (waiting and done == len(photos)):
            rows.append(clip.encode_images(torch.stack(waiting[:chunk])).cpu())
            del waiting[:chunk]
        progress.at(done)
    given = distributed.all_gather_object((keys, torch.cat(rows) if rows else torch.zeros(0, clip.dim)))
    every = [key for one, _ in given for key in one]
    order = sorted(range(len(every)), key=every.__getitem__)
    return RegionViews(
        torch.cat([features for _, features in given])[order],
        [Region(row, every[i][0].label) for row, i in enumerate(order)],
        [every[i][2] for i in order],
    )
