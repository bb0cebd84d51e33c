"""What is wrong with the files is said before or instead of writing, with the file's name and what to do."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import MakeTree, Miniature, photo, save
from miniatures import BUILDERS
from PIL import Image

from twostage.data.errors import DatasetError
from twostage.data.prepare.plan import Request
from twostage.data.prepare.run import prepare

PIXELS = ["coco_stuff", "voc", "ade20k_150", "cityscapes"]
NOT_A_LABEL = {"coco_stuff": 200, "voc": 21, "ade20k_150": 151, "cityscapes": 34}


def prepared(tree: Miniature, **options: Any) -> None:
    prepare(tree.plan(Request(tree.root, **options)))


def maps(tree: Miniature) -> list[Path]:
    return [path for path in tree.expected if path.is_file()]


def indexes(tree: Miniature) -> list[Path]:
    return [path for folder in {p.parent for p in tree.expected} for path in folder.parent.glob("*.json")]


@pytest.mark.parametrize("name", PIXELS)
def test_a_value_that_is_no_label(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    raw = np.array(Image.open(tree.sources[0]))
    raw[0, 0] = NOT_A_LABEL[name]
    save(tree.sources[0], raw)
    with pytest.raises(DatasetError, match=f"{tree.sources[0].name}: values {NOT_A_LABEL[name]} ") as caught:
        prepared(tree)
    assert "not whole" in str(caught.value)
    assert not sorted(tree.expected)[0].exists()
    # The other maps are made, so that a run after the repair has one map to do; the index waits for it.
    assert (
        len(maps(tree)) == len([p for p in tree.expected if p.parent == sorted(tree.expected)[0].parent]) - 1
    )
    assert indexes(tree) == []


@pytest.mark.parametrize("name", [*PIXELS, "pascal_context_459", "ade20k_847"])
def test_an_annotation_that_is_cut_off(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    tree.sources[0].write_bytes(tree.sources[0].read_bytes()[:60])
    with pytest.raises(DatasetError, match=re.escape(tree.sources[0].name)):
        prepared(tree)
    assert not next(iter(tree.expected)).exists()


@pytest.mark.parametrize("name", PIXELS)
def test_colours_are_no_labels(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    save(tree.sources[0], np.zeros((5, 7, 3)))
    with pytest.raises(DatasetError, match="Colours are not labels"):
        prepared(tree)


@pytest.mark.parametrize("name", [*PIXELS, "pascal_context_459", "ade20k_847"])
def test_an_annotation_of_another_size_than_its_photo(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    photos = [p for kind in ("*.jpg", "*_leftImg8bit.png") for p in sorted(tree.root.rglob(kind))]
    for path in photos:
        photo(path, (9, 9))
    with pytest.raises(DatasetError, match=r"pixels \(width x height\), but its photo .* has 9 x 9"):
        prepared(tree)
    assert maps(tree) == []


@pytest.mark.parametrize("name", BUILDERS)
def test_a_photo_that_is_none(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    for path in [*tree.root.rglob("*.jpg"), *tree.root.rglob("*_leftImg8bit.png")]:
        path.write_bytes(b"not a photo")
    with pytest.raises(DatasetError, match="not a photo that can be read"):
        prepared(tree)
    assert maps(tree) == []


@pytest.mark.parametrize("name", BUILDERS)
def test_an_empty_root(tmp_path: Path, name: str) -> None:
    tree = BUILDERS[name](tmp_path / "other")
    with pytest.raises(DatasetError, match=r"there is no such folder. It comes with .*datasets/README\.md"):
        tree.plan(Request(tmp_path))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_split_that_is_none(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    with pytest.raises(
        DatasetError, match=r"there is no split 'vall'\. (Did you mean 'val|Allowed: training, validation)"
    ):
        tree.plan(Request(tree.root, ("vall",)))


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_150", "cityscapes", "ade20k_847"])
def test_an_archive_in_part(make_tree: MakeTree, name: str, caplog: pytest.LogCaptureFixture) -> None:
    tree = make_tree(name)
    source = tree.sources[0]
    count = next(iter(tree.splits.values()))
    source.unlink()
    with pytest.raises(
        DatasetError, match=rf"expected {count}, found {count - 1}: .*in part.*--allow-partial"
    ):
        tree.plan(Request(tree.root))
    with caplog.at_level(logging.WARNING):
        prepared(tree, allow_partial=True)
    assert f"1 of {count} have no annotation" in caplog.text
    assert len(maps(tree)) == len(tree.expected) - 1


@pytest.mark.parametrize("name", ["coco_stuff", "ade20k_150", "cityscapes"])
def test_masks_that_do_not_match_the_photos(make_tree: MakeTree, name: str) -> None:
    tree = make_tree(name)
    source = tree.sources[0]
    source.rename(source.with_name(f"z{source.name}"))
    with pytest.raises(DatasetError, match=r"1 of \d have no photo: z"):
        tree.plan(Request(tree.root))


def test_nothing_matches_at_all(make_tree: MakeTree) -> None:
    tree = make_tree("coco_stuff")
    for path in tree.sources:
        path.rename(path.with_name(f"COCO_{path.name}"))
    with pytest.raises(DatasetError, match="no photo has an annotation of its name"):
        tree.plan(Request(tree.root, allow_partial=True))


def test_hidden_files_do_not_count(make_tree: MakeTree) -> None:
    tree = make_tree("coco_stuff")
    (tree.root / "coco/val2017/._000000000009.jpg").write_bytes(b"a Mac was here")
    prepared(tree)


def test_maps_of_another_list_are_found(make_tree: MakeTree) -> None:
    tree = make_tree("voc")
    prepared(tree)
    stray = tree.root / "VOC2012/labels_20/val/2005_000001.png"
    save(stray, np.zeros((3, 3)))
    with pytest.raises(DatasetError, match=r"1 label maps that are not of this split: 2005_000001\.png"):
        prepared(tree)


def test_many_bad_files_end_the_run(make_tree: MakeTree) -> None:
    tree = make_tree("ade20k_150")
    for number in range(30):
        for kind, ending in (("images", "jpg"), ("annotations", "png")):
            (tree.root / f"ADEChallengeData2016/{kind}/training/ADE_{number}.{ending}").write_bytes(b"")
    with pytest.raises(DatasetError, match="Stopped here: so many") as caught:
        prepared(tree, allow_partial=True)
    assert str(caught.value).count("not an image") == 20


def test_a_photo_turned_by_its_tag_is_mentioned(make_tree: MakeTree) -> None:
    tree = make_tree("ade20k_150")
    path = next(tree.root.glob("ADEChallengeData2016/images/validation/*.jpg"))
    tag = Image.Exif()
    tag[0x0112] = 6
    Image.new("RGB", (7, 5)).save(path, exif=tag)
    reports = prepare(tree.plan(Request(tree.root)))
    assert "EXIF orientation" in reports[1].format()


def test_train_ids_where_the_label_ids_are_gone(make_tree: MakeTree) -> None:
    tree = make_tree("cityscapes")
    for path in tree.sources:
        path.unlink()
    prepared(tree)
    for path, labels in tree.expected.items():
        np.testing.assert_array_equal(np.array(Image.open(path)), labels)
