"""Training batches without end. Batch i depends on (seed, i, rank, world size) alone.

So a run resumed at iteration i sees what the uninterrupted run would have seen, whatever the number of
workers; and W processes with B images each see together what one process with W x B images sees.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from twostage.data.errors import DataError
from twostage.data.sample import Sample, SegmentationDataset, TrainBatch
from twostage.data.transforms import TrainTransformConfig, to_training
from twostage.types import VOID
from twostage.vocabulary import Vocabulary

log = logging.getLogger(__name__)
ErrorRule = Literal["stop", "next"]


class TrainLoader:
    """Iterates over TrainBatch of batch_size crops for this process, from start_iteration on, for ever.

    dataset: needs labels and at least one seen class; vocabulary: the seen classes in order, which the
    batches' class numbers index; num_workers: reading processes, 0 reads in this one; on_error: what an
    unreadable sample does, "stop" with its file's name, or log and take the "next" sample of the data set.

    Raises:
        DataError: empty data set, no seen class, or numbers that do not fit; and while iterating, what
        samples raise.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        batch_size: int,
        seed: int,
        transform_config: TrainTransformConfig,
        num_workers: int = 0,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
        on_error: ErrorRule = "stop",
    ) -> None:
        if len(dataset) == 0:
            raise DataError(f"{dataset.name}: the training data set has no images.")
        if batch_size < 1 or not 0 <= rank < world_size or start_iteration < 0 or seed < 0 or num_workers < 0:
            raise DataError(
                "TrainLoader: expected batch_size >= 1, 0 <= rank < world_size, and start_iteration, seed, "
                "num_workers "
                f">= 0, got {batch_size}, {rank}, {world_size}, {start_iteration}, {seed}, {num_workers}."
            )
        self.vocabulary = training_vocabulary(dataset)
        self._crops = _Crops(
            dataset,
            batch_size,
            seed,
            transform_config,
            rank,
            world_size,
            class_map(dataset.vocabulary),
            on_error,
        )
        self._num_workers = num_workers
        self._start = start_iteration

    def __iter__(self) -> Iterator[TrainBatch]:
        loader = DataLoader(
            self._crops,
            batch_size=None,
            sampler=Iterations(self._start),
            num_workers=self._num_workers,
            worker_init_fn=quiet_worker,
            generator=torch.Generator(),  # of its own, or the global one would depend on when we start
        )
        for made in loader:
            if isinstance(made, DataError):
                raise made
            yield cut_masks(made.images, made.labels, made.image_ids)


def training_vocabulary(dataset: SegmentationDataset) -> Vocabulary:
    """The classes that training may learn: the seen ones, or all where no flags are known.

    Raises:
        DataError: every class is unseen.
    """
    if dataset.vocabulary.seen is not None and not any(dataset.vocabulary.seen):
        raise DataError(f"{dataset.name}: every class is marked unseen, nothing is left to train on.")
    return dataset.vocabulary.seen_only()


def class_map(vocabulary: Vocabulary) -> Tensor:
    """(K,) int64: position of each class among the seen ones, VOID for unseen classes."""
    if vocabulary.seen is None:
        return torch.arange(len(vocabulary))
    seen = torch.tensor(vocabulary.seen)
    return torch.where(seen, seen.cumsum(0) - 1, VOID)


def cut_masks(images: Tensor, labels: Tensor, image_ids: list[str]) -> TrainBatch:
    """A batch of images (B, 3, H, W) uint8 and labels (B, H, W): one mask a class present, ascending."""
    classes, masks = [], []
    for label_map in labels:
        present = torch.from_numpy(np.flatnonzero(np.bincount(label_map.numpy().ravel() + 1)[1:]))
        classes.append(present)
        masks.append(label_map[None] == present[:, None, None].to(label_map.dtype))
    return TrainBatch(images, masks, classes, labels.long(), image_ids)


@dataclass(frozen=True)
class _Made:
    """What a worker sends: labels (B, H, W) int16 instead of masks, to spare the shared memory."""

    images: Tensor
    labels: Tensor
    image_ids: list[str]


@dataclass(frozen=True)
class _Crops(Dataset):
    """Item i: this process's share of batch i."""

    dataset: SegmentationDataset
    batch_size: int
    seed: int
    config: TrainTransformConfig
    rank: int
    world_size: int
    class_map: Tensor
    on_error: ErrorRule

    def __getitem__(self, iteration: int) -> _Made | DataError:
        first = (iteration * self.world_size + self.rank) * self.batch_size
        images, labels, image_ids = [], [], []
        try:
            for place in range(first, first + self.batch_size):
                sample = self._sample(place)
                image, label_map = to_training(
                    sample, self.config, np.random.default_rng([self.seed, 1, place]), self.class_map
                )
                images.append(image)
                labels.append(label_map.to(torch.int16))
                image_ids.append(sample.image_id)
        except DataError as error:
            return error  # raised in the main process, without a worker's traceback around it
        return _Made(torch.stack(images), torch.stack(labels), image_ids)

    def _sample(self, place: int) -> Sample:
        count = len(self.dataset)
        index = int(epoch_order(self.seed, place // count, count)[place % count])
        for attempt in range(count):
            try:
                return self.dataset[(index + attempt) % count]
            except DataError as error:
                if self.on_error == "stop":
                    raise
                log.warning("Skipped a sample: %s", error)
        raise DataError(f"{self.dataset.name}: not one of its {count} samples can be read.")


class Iterations(Sampler[int]):
    """start, start + 1, ..."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self._start)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits the samples."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def quiet_worker(_: int) -> None:
    """One thread a worker: OpenCV's own pool neither helps small images nor survives a fork."""
    cv2.setNumThreads(0)
