"""Training batches of region crops without end. Batch i depends on (seed, i, rank, world size) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from twostage.data.errors import DataError
from twostage.data.loader import Iterations, quiet_worker
from twostage.data.region_crops import RegionCutter
from twostage.data.regions import RegionBatch, RegionPlan, labels_of
from twostage.data.sample import SegmentationDataset

ATTEMPTS = 50
"""Other regions of the same class that are tried where nothing is left of one."""


@dataclass(frozen=True)
class RegionLoader:
    """Iterates over RegionBatch of batch_size crops for this process, from start_iteration on, for ever.

    plan: which regions, whose labels become class numbers in the plan's own order; num_workers: reading
    processes, 0 reads in this one. While iterating it raises what samples raise.
    """

    dataset: SegmentationDataset
    plan: RegionPlan
    cutter: RegionCutter
    batch_size: int
    seed: int
    num_workers: int = 0
    start_iteration: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[RegionBatch]:
        loader = DataLoader(
            _Batches(self),
            batch_size=None,
            sampler=Iterations(self.start_iteration),
            num_workers=self.num_workers,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # of its own, or the global one would depend on when we start
        )
        for made in loader:
            if isinstance(made, DataError):
                raise made
            yield made


@dataclass(frozen=True)
class _Batches(Dataset):
    """Item i: this process's share of batch i."""

    given: RegionLoader

    def __getitem__(self, iteration: int) -> RegionBatch | DataError:
        given = self.given
        first = (iteration * given.world_size + given.rank) * given.batch_size
        try:
            made = [self._one(place) for place in range(first, first + given.batch_size)]
        except DataError as error:
            return error  # raised in the main process, without a worker's traceback around it
        crops, classes, ids = zip(*made, strict=True)
        return RegionBatch(torch.stack(crops), torch.tensor(classes), list(ids))

    def _one(self, place: int) -> tuple[torch.Tensor, int, str]:
        given = self.given
        rng = np.random.default_rng([given.seed, 2, place])
        region = given.plan.at(place)
        for _ in range(ATTEMPTS):
            sample = given.dataset[region.photo]
            image, labels = given.cutter.at_size(sample.image, labels_of(sample))
            crop = given.cutter.train(image, labels == region.label, rng)
            if crop is not None:
                return crop, given.plan.labels.index(region.label), sample.image_id
            region = given.plan.another(region, rng)
        name = given.dataset.vocabulary.shown[region.label]
        raise DataError(
            f"{given.dataset.name}: {ATTEMPTS} regions of {name!r} gave no crop, each was too small. "
            "Leave this class out, or give photos that show more of it."
        )
