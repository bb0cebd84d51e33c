"""A data set as one fold sees it: base classes to learn, held-out ones hidden, the rest one background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from twostage.data.errors import DatasetError, LabelError
from twostage.data.folds import Split
from twostage.data.sample import Sample, SegmentationDataset
from twostage.types import VOID
from twostage.vocabulary import Vocabulary

BACKGROUND = "everything else"
"""The class behind the base classes: what is no word of this fold. It is never asked for."""


class FoldDataset:
    """The photos of `dataset` with labels 0..M-1 for the M base classes, M for background, VOID for held-out
    classes; without photos that show no base class, where the data set knows its classes beforehand.

    unlabelled: "ignore" or "background", what pixels without a label are.

    Raises:
        DatasetError: no photo is left.
    """

    def __init__(self, dataset: SegmentationDataset, split: Split, unlabelled: str = "ignore") -> None:
        self.dataset, self.split = dataset, split
        self.name = dataset.name
        names = dataset.vocabulary.names
        self.words = Vocabulary(tuple(names[position] for position in split.base))
        """The base classes, all that is learned."""
        self.vocabulary = Vocabulary((*self.words.names, (BACKGROUND,)))
        self._table = torch.full((len(names) + 1,), len(split.base), dtype=torch.int32)
        self._table[list(split.held_out)] = VOID
        self._table[list(split.base)] = torch.arange(len(split.base), dtype=torch.int32)
        self._table[-1] = len(split.base) if unlabelled == "background" else VOID  # VOID indexes the last row
        self._kept = _showing(dataset, split.base)

    def __len__(self) -> int:
        return len(self.dataset) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        """Raises LabelError where the photo has no labels, and what the data set itself raises."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {index}.")
        sample = self.dataset[index if self._kept is None else self._kept[index]]
        if sample.labels is None:
            raise LabelError(
                f"{sample.source or sample.image_id}: training needs labels, but this image has none."
            )
        return replace(sample, labels=self._table[sample.labels.long()])


def _showing(dataset: Any, base: Sequence[int]) -> list[int] | None:
    """The photos that show a base class; None where that is not known without reading them."""
    if not hasattr(dataset, "classes_present"):
        return None
    wanted = set(base)
    kept = [number for number, classes in enumerate(dataset.classes_present()) if wanted & set(classes)]
    if not kept:
        raise DatasetError(f"{dataset.name}: no photo shows a class of this fold's base.")
    return kept
