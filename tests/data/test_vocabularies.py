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


# name: classes, names in all, stored values of the classes, ignored values; of the dense evaluations
DENSE = {
    "voc21": (21, 26 + 18 + 7 + 5, range(21), (255,)),
    "voc21_plain": (21, 21, range(21), (255,)),
    "voc20": (20, 18 + 7 + 5, range(20), (255,)),
    "voc20_plain": (20, 20, range(20), (255,)),
    "pascal_context_60": (60, 60, [255, *range(59)], ()),
    "coco_object": (81, 25 + 78 + 8 + 5, [255, *range(80)], ()),
    "coco_object_plain": (81, 81, [255, *range(80)], ()),
}
BACKGROUND = (
    *("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed"),
    *("building", "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair"),
    *("floor", "hill", "rail", "fence"),
)
CLOTHES = tuple(f"person in {one}" for one in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket"))
SCREENS = ("television monitor", "tv monitor", "monitor", "television", "screen")


def test_every_list_is_checked_here() -> None:
    assert vocabularies.names() == sorted([*LISTS, *DENSE])


@pytest.mark.parametrize("name", sorted(DENSE))
def test_lists_of_the_dense_evaluations(name: str) -> None:
    count, names, ids, ignored = DENSE[name]
    found = vocabularies.load(name)
    assert (len(found.vocabulary), len(found.vocabulary.every_name)) == (count, names)
    assert found.vocabulary.label_ids == tuple(ids)
    assert found.ignore == ignored
    assert found.vocabulary.seen is None
    assert found.vocabulary.background == (None if name.startswith("voc20") else 0)
    assert found.vocabulary.shown[0] == ("aeroplane" if name.startswith("voc20") else "background")


def test_background_words_and_synonyms() -> None:
    voc, coco = (vocabularies.load(name).vocabulary.names for name in ("voc21", "coco_object"))
    assert len(BACKGROUND) == 26
    assert voc[0] == BACKGROUND
    assert coco[0] == tuple(word for word in BACKGROUND if word != "bed"), "a bed is an object there"
    assert vocabularies.load("voc20").vocabulary.names == voc[1:]
    assert voc[15] == ("person", *CLOTHES)
    assert coco[1] == ("person", *CLOTHES, "body")
    assert (voc[4], voc[11], voc[20]) == (("ship",), ("table",), SCREENS)
    assert (coco[9], coco[61], coco[63]) == (("ship",), ("table",), SCREENS)


@pytest.mark.parametrize(
    ("name", "own", "first"),
    [
        ("voc21", "voc", 1),
        ("voc20", "voc", 0),
        ("voc21_plain", "voc", 1),
        ("voc20_plain", "voc", 0),
        ("pascal_context_60", "pascal_context_59", 1),
        ("coco_object", "coco_stuff", 1),
        ("coco_object_plain", "coco_stuff", 1),
    ],
)
def test_all_other_words_are_the_data_sets_own(name: str, own: str, first: int) -> None:
    words, expected = vocabularies.load(name).vocabulary.shown[first:], vocabularies.load(own).vocabulary
    other = {"ship": "boat", "table": "dining table", SCREENS[0]: "tv"}
    if own == "voc":
        other = {"ship": "boat", "table": "diningtable", SCREENS[0]: "tvmonitor"}
    back = words if name.endswith("_plain") or "context" in name else [other.get(w, w) for w in words]
    assert list(back) == list(expected.shown[: len(words)])


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
    labels, (count, void) = PUBLISHED[name], (21, 255) if name == "voc21" else LISTS[name][:2]
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
