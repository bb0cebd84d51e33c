"""The class lists that ship with the package, against the facts of the papers."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from twostage.data import vocabularies
from twostage.data.errors import DatasetError, LabelError
from twostage.data.published_labels import PASCAL_CONTEXT_59_OF_459, PUBLISHED, published

# name: (classes, ignored value, SHA-256 over the names, one a line, of an independent copy of each list)
LISTS = {
    "coco_stuff": (171, 255, "8ea44449837dceb3"),
    "voc": (20, 255, "7d877f185c807bc5"),
    "pascal_context_59": (59, 255, "1c0546d54360b603"),
    "pascal_context_459": (459, 65535, "c9fe8ff7083d2572"),
    "ade20k_150": (150, 255, "aaab84ac88c425d4"),
    "ade20k_847": (847, 65535, "ee311c5f3b780a16"),
    "cityscapes": (19, 255, "5995d02d6c574d51"),
}
UNSEEN_COCO = {
    19: "cow", 23: "giraffe", 28: "suitcase", 29: "frisbee", 36: "skateboard", 51: "carrot", 76: "scissors",
    88: "cardboard", 94: "clouds", 112: "grass", 133: "playingfield", 136: "river", 137: "road", 157: "tree",
    160: "wall-concrete",
}  # fmt: skip


def test_every_list_is_checked_here() -> None:
    assert vocabularies.names() == sorted(LISTS)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_counts_ids_ignored_and_every_name(name: str) -> None:
    count, ignored, digest = LISTS[name]
    found = vocabularies.load(name)
    assert len(found.vocabulary) == count
    assert found.ignore == (ignored,)
    assert found.vocabulary.label_ids == tuple(range(count))
    assert all(len(synonyms) == 1 for synonyms in found.vocabulary.names)
    assert hashlib.sha256("\n".join(found.vocabulary.shown).encode()).hexdigest()[:16] == digest


def test_coco_unseen_classes() -> None:
    vocabulary = vocabularies.load("coco_stuff").vocabulary
    assert vocabulary.seen is not None
    unseen = {k: vocabulary.shown[k] for k, flag in enumerate(vocabulary.seen) if not flag}
    assert unseen == UNSEEN_COCO


def test_voc_unseen_classes() -> None:
    vocabulary = vocabularies.load("voc").vocabulary
    assert vocabulary.seen == (True,) * 15 + (False,) * 5
    assert vocabulary.shown[15:] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")


@pytest.mark.parametrize("name", sorted(set(LISTS) - {"coco_stuff", "voc"}))
def test_cross_data_sets_have_no_flags(name: str) -> None:
    assert vocabularies.load(name).vocabulary.seen is None


@pytest.mark.parametrize(
    ("name", "position", "word"),
    [
        ("coco_stuff", 0, "person"),
        ("coco_stuff", 79, "toothbrush"),
        ("coco_stuff", 80, "banner"),
        ("coco_stuff", 84, "building-other"),
        ("coco_stuff", 111, "furniture-other"),
        ("coco_stuff", 170, "wood"),
        ("voc", 10, "diningtable"),
        ("ade20k_150", 6, "road, route"),
        ("ade20k_150", 8, "window"),
        ("ade20k_847", 846, "adding machine, totalizer, totaliser"),
        ("pascal_context_59", 49, "diningtable"),
        ("pascal_context_459", 396, "table"),
        ("cityscapes", 6, "traffic light"),
    ],
)
def test_names_as_published(name: str, position: int, word: str) -> None:
    assert vocabularies.load(name).vocabulary.shown[position] == word


def test_an_unknown_list_is_answered_with_the_nearest() -> None:
    with pytest.raises(DatasetError, match="Did you mean 'coco_stuff'"):
        vocabularies.load("coco_stuf")
    with pytest.raises(DatasetError, match="Did you mean 'ade20k_150'"):
        published("ade20k_15")


def test_coco_values_of_the_unseen_classes() -> None:
    # stored value -> class, from the zero-shot split's definition
    values = [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]
    found = published("coco_stuff").to_contiguous(np.array([values]), 255, "map.png")
    assert found.tolist() == [list(UNSEEN_COCO)]


def test_pascal_59_are_the_459_of_the_same_name() -> None:
    small, large = vocabularies.load("pascal_context_59"), vocabularies.load("pascal_context_459")
    assert len(PASCAL_CONTEXT_59_OF_459) == 59
    pairs = [
        (word, large.vocabulary.shown[value - 1])
        for word, value in zip(small.vocabulary.shown, PASCAL_CONTEXT_59_OF_459, strict=True)
    ]
    assert [pair for pair in pairs if pair[0] != pair[1]] == [("diningtable", "table")]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_every_class_has_one_published_value(name: str) -> None:
    labels, (count, void, _) = PUBLISHED[name], LISTS[name]
    assert len(labels.values) == len(set(labels.values)) == count
    assert not set(labels.values) & set(labels.ignored)
    assert tuple(sorted(labels.values)) == labels.values
    back = labels.to_contiguous(np.array([[*labels.values, *labels.ignored]]), void, "map.png")
    assert back.tolist() == [[*range(count)] + [void] * len(labels.ignored)]


def test_published_values_by_hand() -> None:
    raw = np.array([[0, 1, 20, 255]], np.uint8)
    assert published("voc").to_contiguous(raw, 255, "a.png").tolist() == [[255, 0, 19, 255]]
    assert published("ade20k_150").to_contiguous(raw[:, :3], 255, "a.png").tolist() == [[255, 0, 19]]
    raw = np.array([[0, 7, 8, 9, 33, 18]], np.uint8)
    assert published("cityscapes").to_contiguous(raw, 255, "a.png").tolist() == [[255, 0, 1, 255, 18, 255]]
    raw = np.array([[10, 11, 12, 181]], np.uint8)
    assert published("coco_stuff").to_contiguous(raw, 255, "a.png").tolist() == [[10, 255, 11, 170]]


@pytest.mark.parametrize("value", [-1, 21, 100, 70000])
def test_a_strange_published_value_is_refused(value: int) -> None:
    with pytest.raises(LabelError, match=rf"map\.png: values {value} \(1 pixels\)"):
        published("voc").to_contiguous(np.array([[3, value]]), 255, "map.png")
