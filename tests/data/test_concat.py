"""Data sets in a row."""

from __future__ import annotations

import pytest
import torch

from twostage.data.concat import ConcatDataset
from twostage.data.errors import DatasetError
from twostage.data.sample import Sample
from twostage.vocabulary import Vocabulary


class Few:
    """`count` tiny samples."""

    def __init__(self, name: str, count: int, vocabulary: Vocabulary) -> None:
        self.name, self.count, self.vocabulary = name, count, vocabulary

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.zeros((3, 1, 1), dtype=torch.uint8), None, str(range(self.count)[index]))


ANIMALS = Vocabulary((("cat",), ("dog",)), seen=(True, False))


def test_samples_follow_each_other_with_ids_of_their_own() -> None:
    joined = ConcatDataset([Few("x", 2, ANIMALS), Few("empty", 0, ANIMALS), Few("y", 1, ANIMALS)])
    assert joined.name == "x+empty+y"
    assert len(joined) == 3
    assert [sample.image_id for sample in joined] == ["x_0", "x_1", "y_0"]
    assert joined.vocabulary is ANIMALS


def test_classes_have_to_agree() -> None:
    for other, says in (
        (Vocabulary((("cat",), ("cow",)), seen=(True, False)), "differ in cow, dog"),
        (Vocabulary((("dog",), ("cat",)), seen=(False, True)), "order, synonyms or seen flags"),
        (Vocabulary((("cat",), ("dog",))), "order, synonyms or seen flags"),
    ):
        with pytest.raises(DatasetError, match=f"x and y cannot be joined.*{says}"):
            ConcatDataset([Few("x", 1, ANIMALS), Few("y", 1, other)])
    with pytest.raises(DatasetError, match="one or more"):
        ConcatDataset([])
