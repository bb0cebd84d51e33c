"""The drawn world: the same for a seed, truthful about itself, the same again after a way through files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.data import catalog
from twostage.data.export import export_folder
from twostage.data.sample import Sample
from twostage.data.shapes.classes import CLASSES, COLOURS, STUFF, THINGS, UNSEEN, vocabulary
from twostage.data.shapes.dataset import SPLITS, ShapesDataset
from twostage.data.shapes.scene import MIN_VISIBLE, SIZES, Scene, render
from twostage.data.shapes.things import CANVAS, draw
from twostage.vocabulary import Vocabulary

COUNT = 120


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    dataset = ShapesDataset("val")
    return [dataset.scene(index) for index in range(COUNT)]


def test_twenty_words_and_five_that_training_never_sees() -> None:
    words = vocabulary()
    assert len(words) == len(set(CLASSES)) == 20
    assert words.shown == CLASSES
    assert words.seen is not None
    unseen = {name for name, seen in zip(CLASSES, words.seen, strict=True) if not seen}
    assert unseen == {"gravel", "checkered ball", "dotted star", "mushroom", "boat"} == set(UNSEEN)
    # every part of an unseen composition is seen in another one
    parts = {part for name, seen in zip(CLASSES, words.seen, strict=True) if seen for part in name.split()}
    assert {"checkered", "ball", "dotted", "star"} <= parts


def test_same_seed_same_bits() -> None:
    for split in SPLITS:
        one, again = ShapesDataset(split).scene(7), ShapesDataset(split).scene(7)
        assert np.array_equal(one.image, again.image)
        assert np.array_equal(one.labels, again.labels)
        assert one.caption() == again.caption()


def test_order_of_reading_changes_nothing() -> None:
    dataset = ShapesDataset("val")
    first = dataset[5].image
    dataset[2], dataset[9]
    assert torch.equal(dataset[5].image, first)


def test_another_index_split_or_seed_is_another_scene() -> None:
    sources = [(split, seed, index) for split in SPLITS for seed in (0, 1) for index in (0, 1)]
    drawn = {ShapesDataset(split, seed).scene(index).image.tobytes() for split, seed, index in sources}
    assert len(drawn) == len(sources)


def test_numpys_and_torchs_own_generators_are_left_alone() -> None:
    np.random.seed(3)
    torch.manual_seed(3)
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index,union-attr]
    ShapesDataset("test").scene(1)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(torch_before, torch.get_rng_state())
    np.random.seed(4)
    assert np.array_equal(ShapesDataset("test").scene(1).image, ShapesDataset("test").scene(1).image)


def test_every_class_appears_in_sizes_within_bounds(scenes: list[Scene]) -> None:
    seen = {label for scene in scenes for label in scene.classes}
    assert seen == set(range(20))
    sides = {side for scene in scenes for side in scene.labels.shape}
    assert sides == set(SIZES)
    assert (min(sides), max(sides)) == (128, 160)
    for scene in scenes:
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.labels.shape, 3)
        assert scene.labels.dtype == np.int32
        assert scene.image.std() > 5, "a picture, not a plane"


def test_instances_are_where_the_labels_say(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(scene.instances) <= 4
        covered = np.zeros(scene.labels.shape, int)
        for thing in scene.instances:
            assert thing.mask.dtype == bool
            assert thing.mask.any()
            assert set(np.unique(scene.labels[thing.mask])) == {thing.class_index}
            assert thing.class_index >= len(STUFF)
            assert thing.colour in COLOURS
            covered += thing.mask
        assert covered.max(initial=0) <= 1, "two things cannot show at one pixel"
        assert np.array_equal(covered > 0, scene.labels >= len(STUFF))


def test_nothing_is_hidden_too_far() -> None:
    """The same scene with one thing and with two: the second leaves enough of the first."""
    for number in range(30):
        fewer = render(np.random.default_rng(number), things=1)
        more = render(np.random.default_rng(number), things=2)
        if len(more.instances) == 2:
            whole, left = fewer.instances[0].mask, more.instances[0].mask
            assert not (left & ~whole).any()
            assert left.sum() >= MIN_VISIBLE * whole.sum()


def test_captions_speak_of_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        caption = scene.caption()
        for thing in scene.instances:
            assert f"a {thing.colour} {CLASSES[thing.class_index]}" in caption
        mentioned = {name for name in CLASSES if name in caption.replace(" and ", ",").replace(" on ", ",")}
        assert mentioned <= {CLASSES[label] for label in scene.classes}
        ground = caption.split(" on ")[-1]
        shares = {name: (scene.labels == k).sum() for k, name in enumerate(STUFF)}
        assert shares[ground] == max(shares.values())
    assert render(np.random.default_rng(0), things=0).caption() in STUFF


def test_every_thing_can_be_drawn_in_many_ways() -> None:
    for name in THINGS:
        looks = [draw(name, np.random.default_rng(seed)) for seed in range(6)]
        assert len({look.picture.tobytes() for look in looks}) == 6
        for look in looks:
            assert look.picture.shape == (CANVAS, CANVAS, 3)
            assert 0.1 < (look.alpha > 127).mean() < 0.95
            assert look.colour in COLOURS


def test_samples_and_bounds() -> None:
    dataset = ShapesDataset("test", length=3)
    sample = dataset[2]
    assert sample.image.shape == (3, *sample.labels.shape)  # type: ignore[union-attr]
    assert sample.image.dtype == torch.uint8
    assert sample.image_id == "test_000002"
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), dataset.scene(2).image)
    assert len(dataset) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match=f"shapes_test has 3 scenes, there is no number {index}"):
            dataset[index]
    with pytest.raises(ValueError, match="unknown split 'tset'; there are train, val, test"):
        ShapesDataset("tset")
    assert ShapesDataset("val", seed=4).name == "shapes_val@4"
    assert len(ShapesDataset("train")) == 100_000


def test_export_and_back_is_exact(tmp_path: Path) -> None:
    dataset = ShapesDataset("val")
    told: list[tuple[int, int]] = []
    out = export_folder(dataset, tmp_path / "world", "val", 3, progress=lambda *step: told.append(step))
    again = catalog.get(f"folder:{out}@val")
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(again) == 3
    assert again.vocabulary == dataset.vocabulary
    for index in range(3):
        one, other = dataset[index], again[index]
        assert other.image_id == one.image_id
        assert torch.equal(other.image, one.image)
        assert other.labels is not None
        assert torch.equal(other.labels, one.labels)  # type: ignore[arg-type]
    captions = json.loads((out / "captions" / "val.json").read_text())
    assert captions == {dataset[i].image_id: dataset.scene(i).caption() for i in range(3)}
    assert not list(tmp_path.rglob("*.tmp*"))


class Odd:
    """Large label ids, synonyms, void pixels, a photo without truth, nothing known of what was seen."""

    name = "odd"
    vocabulary = Vocabulary((("sofa", "couch"), ("cat",)), None, (300, 7))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        image = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
        labels = torch.tensor([[0, 1, -1, 0, 1]] * 4, dtype=torch.int32)
        return Sample(image + index, labels, f"photo{index}")


def test_export_of_any_data_set(tmp_path: Path) -> None:
    again = catalog.get(f"folder:{export_folder(Odd(), tmp_path, 'all')}@all")
    assert again.vocabulary == Odd.vocabulary
    for index, sample in enumerate(itertools.islice(again, 2)):  # type: ignore[call-overload]
        assert torch.equal(sample.labels, Odd()[index].labels)
        assert torch.equal(sample.image, Odd()[index].image)
    assert not (tmp_path / "captions").exists()


def test_export_of_nothing_still_names_the_classes(tmp_path: Path) -> None:
    export_folder(Odd(), tmp_path, "all", 0)
    content = json.loads((tmp_path / "classes.json").read_text())
    assert content["ignore"] == 65535
    assert [entry["id"] for entry in content["classes"]] == [300, 7]
    assert not (tmp_path / "images").exists()
