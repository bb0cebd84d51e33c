"""Several data sets with the same classes as one, in order."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import replace

from twostage.data.errors import DatasetError
from twostage.data.sample import Sample, SegmentationDataset


class ConcatDataset:
    """The samples of the first, then of the second, ...; ids become NAME_ID so that they stay unique.

    Raises:
        DatasetError: no data set, or class names or seen flags that differ.
    """

    def __init__(self, datasets: Sequence[SegmentationDataset]) -> None:
        if not datasets:
            raise DatasetError("ConcatDataset: expected one or more data sets, got none.")
        first = datasets[0]
        for other in datasets[1:]:
            ours, theirs = first.vocabulary, other.vocabulary
            if (ours.names, ours.seen) != (theirs.names, theirs.seen):
                differing = ", ".join(sorted(set(ours.shown) ^ set(theirs.shown))[:5])
                raise DatasetError(
                    f"{first.name} and {other.name} cannot be joined: their classes differ in "
                    f"{differing or 'order, synonyms or seen flags'}. Give them the same class list."
                )
        self.name = "+".join(dataset.name for dataset in datasets)
        self.vocabulary = first.vocabulary
        self._datasets = list(datasets)
        self._ends = list(itertools.accumulate(len(dataset) for dataset in datasets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {index}.")
        part = bisect.bisect_right(self._ends, index)
        dataset = self._datasets[part]
        sample = dataset[index - (self._ends[part] - len(dataset))]
        return replace(sample, image_id=f"{dataset.name}_{sample.image_id}".replace("/", "_"))
