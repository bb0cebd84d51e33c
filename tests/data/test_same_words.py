"""What a network trained on one data set has seen of another, by name."""

from __future__ import annotations

import pytest

from twostage.data import vocabularies
from twostage.data.same_words import forms
from twostage.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pottedplant", "potted plant"),
        ("tvmonitor", "tv"),
        ("aeroplane", "airplane"),
        ("sky-other", "sky"),
        ("road, route", "road"),
        ("Traffic Light", "traffic light"),
        ("sofa", "couch"),
        ("sidewalk, pavement", "pavement"),
    ],
)
def test_names_that_mean_the_same(one: str, other: str) -> None:
    assert forms(one) & forms(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("wall-brick", "wall-concrete"),
        ("plant-other", "potted plant"),
        ("table", "dining table"),
        ("bear", "teddy bear"),
        ("light", "traffic light"),
        ("dog", "hot dog"),
        ("water-other", "waterdrops"),
    ],
)
def test_names_that_do_not(one: str, other: str) -> None:
    assert not forms(one) & forms(other)


def test_a_network_trained_on_coco_knows_which_voc_words_it_has_seen() -> None:
    coco = vocabularies.load("coco_stuff").vocabulary
    voc = vocabularies.load("voc").vocabulary.with_seen(coco.seen_only().every_name, forms)
    assert voc.seen is not None
    unseen = [name for name, flag in zip(voc.shown, voc.seen, strict=True) if not flag]
    assert unseen == ["cow"], "the one VOC class that the COCO split holds out"


def test_what_coco_holds_out_stays_unseen_elsewhere() -> None:
    trained = vocabularies.load("coco_stuff").vocabulary.seen_only().every_name
    words = Vocabulary.from_words("tree, grass, river, giraffe, person, sky, wall")
    assert words.with_seen(trained, forms).seen == (False, False, False, False, True, True, True)


def test_every_list_finds_itself() -> None:
    for name in vocabularies.names():
        vocabulary = vocabularies.load(name).vocabulary
        assert all(vocabulary.with_seen(vocabulary.every_name, forms).seen or ())


def test_no_two_seen_and_unseen_classes_of_a_split_are_confused() -> None:
    for name in ("coco_stuff", "voc"):
        vocabulary = vocabularies.load(name).vocabulary
        assert vocabulary.with_seen(vocabulary.seen_only().every_name, forms).seen == vocabulary.seen
