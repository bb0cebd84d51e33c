"""Folds against lists written by hand, and a data set as one fold sees it."""

from __future__ import annotations

import pytest
import torch

from twostage.data import vocabularies
from twostage.data.errors import DatasetError, LabelError
from twostage.data.fold_dataset import FoldDataset
from twostage.data.folds import Split, coco_20i, fold_flags, pascal_5i, split_of
from twostage.data.loader import class_map, training_vocabulary
from twostage.data.sample import Sample
from twostage.data.shapes.classes import UNSEEN, vocabulary
from twostage.vocabulary import Vocabulary

PASCAL = {
    0: "aeroplane bicycle bird boat bottle",
    1: "bus car cat chair cow",
    2: "diningtable dog horse motorbike person",
    3: "pottedplant sheep sofa train tvmonitor",
}
CONTIGUOUS_1 = (
    "elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, "
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle"
)
INTERLEAVED_1 = (
    "bicycle, bus, traffic light, bench, horse, bear, umbrella, frisbee, kite, surfboard, cup, bowl, orange, "
    "pizza, couch, toilet, remote, oven, book, teddy bear"
)


def held_out(names: Vocabulary, flags: tuple[bool, ...]) -> list[str]:
    return [name for name, seen in zip(names.shown, flags, strict=False) if not seen]


@pytest.mark.parametrize("fold", PASCAL)
def test_pascal(fold: int) -> None:
    assert held_out(vocabularies.load("voc").vocabulary, pascal_5i(fold)) == PASCAL[fold].split()


@pytest.mark.parametrize(("order", "listed"), [("contiguous", CONTIGUOUS_1), ("interleaved", INTERLEAVED_1)])
def test_coco(order: str, listed: str) -> None:
    names = vocabularies.load("coco_stuff").vocabulary
    assert held_out(names, coco_20i(1, order)) == listed.split(", ")
    split = split_of(names, 1, 4, order, classes=80)
    assert [names.shown[position] for position in split.held_out] == listed.split(", ")
    assert len(split.base) == 60
    assert max(split.taking_part) == 79, "stuff takes no part"


@pytest.mark.parametrize("order", ["contiguous", "interleaved"])
@pytest.mark.parametrize("folds", [2, 4, 5, 10, 20])
def test_every_class_is_held_out_once(order: str, folds: int) -> None:
    rows = torch.tensor([fold_flags(20, fold, folds, order) for fold in range(folds)])
    assert torch.equal((~rows).sum(dim=0), torch.ones(20, dtype=torch.int64))
    assert torch.equal((~rows).sum(dim=1), torch.full((folds,), 20 // folds))


def test_the_data_sets_own_split() -> None:
    words = vocabulary()
    split = split_of(words, None)
    assert tuple(words.shown[position] for position in split.held_out) == UNSEEN
    assert split_of(Vocabulary.from_words("a, b"), None) == Split((0, 1), ())


def test_what_is_no_fold() -> None:
    with pytest.raises(DatasetError, match=r"no fold 4 among 4; choose one of 0\.\.3"):
        fold_flags(20, 4, 4)
    with pytest.raises(DatasetError, match="no fold -1"):
        fold_flags(20, -1, 4)
    with pytest.raises(DatasetError, match="20 classes cannot be shared evenly by 3 folds"):
        fold_flags(20, 0, 3)
    with pytest.raises(DatasetError, match="Did you mean 'interleaved'"):
        fold_flags(20, 0, 4, "interleved")
    with pytest.raises(DatasetError, match="80 classes should take part, the list has 2"):
        split_of(Vocabulary.from_words("a, b"), 0, classes=80)
    with pytest.raises(DatasetError, match="nothing is left to train on"):
        split_of(Vocabulary((("a",),), (False,)), None)


class Photos:
    name = "photos"
    vocabulary = Vocabulary.from_words("a, b|bee, c, d")

    def __init__(self, *rows: list[int]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        labels = torch.tensor([self.rows[index]], dtype=torch.int32)
        return Sample(torch.zeros(3, *labels.shape, dtype=torch.uint8), labels, str(index))


class Indexed(Photos):
    def classes_present(self) -> list[tuple[int, ...]]:
        return [tuple(sorted(set(row) - {-1})) for row in self.rows]


@pytest.mark.parametrize(("unlabelled", "void"), [("ignore", -1), ("background", 2)])
def test_labels_of_a_fold(unlabelled: str, void: int) -> None:
    """Base b and d, held out a, and c in neither: it is background; a is hidden."""
    found = FoldDataset(Photos([0, 1, 2, 3, -1], [2, 2, 2, 2, 2]), Split((1, 3), (0,)), unlabelled)
    assert found.words.names == (("b", "bee"), ("d",))
    labels = found[0].labels
    assert labels is not None
    assert labels.tolist() == [[-1, 0, 2, 1, void]]
    assert len(found) == 2
    assert len(training_vocabulary(found)) == 3
    assert class_map(found.vocabulary).tolist() == [0, 1, 2]


def test_photos_without_a_base_class_are_left_out_where_that_is_known() -> None:
    found = FoldDataset(Indexed([0, 0], [2, 1], [3, -1]), Split((1, 3), (0,)))
    assert [found[number].image_id for number in range(len(found))] == ["1", "2"]
    with pytest.raises(IndexError, match="has 2 samples, there is no number 2"):
        found[2]
    with pytest.raises(DatasetError, match="no photo shows a class of this fold's base"):
        FoldDataset(Indexed([0, 0]), Split((1, 3), (0,)))


def test_labels_are_needed() -> None:
    class Bare(Photos):
        def __getitem__(self, index: int) -> Sample:
            return Sample(torch.zeros(3, 1, 1, dtype=torch.uint8), None, "x", "x.jpg")

    with pytest.raises(LabelError, match=r"x\.jpg: training needs labels"):
        FoldDataset(Bare([0]), Split((1,), ()))[0]
