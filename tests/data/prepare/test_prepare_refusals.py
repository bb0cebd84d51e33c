"""What is wrong with the files is said before or instead of writing, with the file's name and what to do."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import BUILDERS, MakeTree, Miniature, photo, save
from PIL import Image

from twostage.data.errors import DatasetError
from twostage.data.prepare.pascal_context import plan as plan_context
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


class TestVoc:
    def test_validation_names_in_the_training_list(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        names = tree.root / "VOC2012/train_aug.txt"
        names.write_text(names.read_text() + "2007_000042\n")
        with pytest.raises(DatasetError, match=r"1 names are in .*val\.txt too: 2007_000042"):
            tree.plan(Request(tree.root, allow_partial=True))

    def test_a_name_twice(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        (tree.root / "VOC2012/val.txt").write_text("2007_000033\n2007_000033\n")
        with pytest.raises(DatasetError, match="1 names are listed twice: 2007_000033"):
            tree.plan(Request(tree.root))

    def test_the_challenges_own_short_list(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        (tree.root / "VOC2012/train_aug.txt").rename(tree.root / "VOC2012/train.txt")
        (tree.root / "VOC2012/train.txt").write_text(
            "".join(f"2005_{number:06d}\n" for number in range(1464))
        )
        with pytest.raises(DatasetError, match=r"train\.txt: has the challenge's own 1,464 names"):
            tree.plan(Request(tree.root))

    def test_no_training_list_means_all_masks_but_the_validation(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        (tree.root / "VOC2012/train_aug.txt").unlink()
        prepared(tree)
        assert len(maps(tree)) == 5

    def test_raw_layout_with_palette_masks(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        root = tree.root / "VOC2012"
        lists = root / "ImageSets/Segmentation"
        lists.mkdir(parents=True)
        (root / "train_aug.txt").rename(lists / "trainaug.txt")
        (root / "val.txt").rename(lists / "val.txt")
        (lists / "train.txt").write_text("2007_000032\n")
        for path in tree.sources[3:]:
            save(root / "SegmentationClass" / path.name, np.array(Image.open(path)), "P")
            path.unlink()
        prepared(tree)
        for path, labels in tree.expected.items():
            np.testing.assert_array_equal(np.array(Image.open(path)), labels)

    def test_no_validation_list(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        (tree.root / "VOC2012/val.txt").unlink()
        with pytest.raises(DatasetError, match=r"expected one of val\.txt, .*found none"):
            tree.plan(Request(tree.root))

    def test_validation_alone_needs_no_augmented_masks(self, make_tree: MakeTree) -> None:
        tree = make_tree("voc")
        augmented = tree.root / "VOC2012/SegmentationClassAug"
        augmented.rename(tree.root / "VOC2012/SegmentationClass")
        with pytest.raises(DatasetError, match="SegmentationClassAug: there is no such folder"):
            tree.plan(Request(tree.root))
        prepared(tree, splits=("val",))
        assert len(maps(tree)) == 2


Change = Callable[[dict[str, Any]], None]


class TestContextJson:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("annos_segmentation"), "annos_segmentation'.* is missing or odd"),
            (lambda c: c["images"][0].pop("phase"), "phase'.* is missing or odd"),
            (lambda c: c["annos_segmentation"][0].update(category_id="x"), "is missing or odd"),
            (
                lambda c: [one.update(name=f"x{one['name']}") for one in c["categories"]],
                "other names: 2 is 'x",
            ),
            (lambda c: c["images"].pop(1), "expected 2, found 1: the phase 'train' is there in part"),
            (lambda c: c["images"][1].update(file_name="1999_1.jpg"), "1 of 2 have no photo: 1999_1"),
        ],
    )
    def test_structure(self, make_tree: MakeTree, change: Change, message: str) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        change(content)
        tree.sources[0].write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            tree.plan(Request(tree.root))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda one: one.update(category_id=460), r"2008_000002: values 460 "),
            (lambda one: one.update(segmentation=[[1, 2, 3, 4]]), "a mask of category .*expected"),
            (lambda one: one["segmentation"].update(size=[40, 6]), r"\(40, 6\) pixels .* \(6, 40\)"),
            (lambda one: one["segmentation"].update(counts="0"), "the runs cover 0 pixels"),
        ],
    )
    def test_masks(self, make_tree: MakeTree, change: Change, message: str) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        change(content["annos_segmentation"][0])
        tree.sources[0].write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            prepared(tree)
        assert not (tree.root / "VOC2010/labels_59/val/2008_000002.png").exists()

    def test_cut_off(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].write_bytes(tree.sources[0].read_bytes()[:-10])
        with pytest.raises(DatasetError, match="not JSON, or cut off"):
            tree.plan(Request(tree.root))

    def test_no_object(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].write_text("[]")
        with pytest.raises(DatasetError, match="expected an object, got list"):
            tree.plan(Request(tree.root))

    def test_neither_kind_of_annotation(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        tree.sources[0].unlink()
        with pytest.raises(DatasetError, match=r"expected trainval_merged\.json, or the folder trainval"):
            tree.plan(Request(tree.root))
        with pytest.raises(DatasetError, match=r"trainval_merged\.json: cannot be read"):
            plan_context(Request(tree.root), annotations="json")

    def test_few_categories_are_not_459(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_59")
        with pytest.raises(DatasetError, match=r"categories only, not of 459.*trainval\.tar\.gz"):
            plan_context(Request(tree.root), (459,))

    def test_one_other_name_is_a_warning(self, make_tree: MakeTree, caplog: pytest.LogCaptureFixture) -> None:
        tree = make_tree("pascal_context_59")
        content = json.loads(tree.sources[0].read_text())
        content["categories"][3]["name"] = "dining table"
        tree.sources[0].write_text(json.dumps(content))
        prepared(tree)
        assert "397 is 'dining table', here" in caplog.text

    def test_59_classes_from_matlab_files(self, make_tree: MakeTree) -> None:
        tree = make_tree("pascal_context_459")
        splits = plan_context(Request(tree.root, ("val",), allow_partial=True))
        prepare(splits)
        made = np.array(Image.open(tree.root / "VOC2010/labels_59/val/2008_000007.png"))
        raw = tree.expected[tree.root / "VOC2010/labels_459/val/2008_000007.png"] + 1
        np.testing.assert_array_equal(made, np.where(raw == 2, 0, 255))


class TestMatlab:
    def test_no_label_map(self, make_tree: MakeTree) -> None:
        from scipy.io import savemat

        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"Other": np.zeros((2, 2))})
        with pytest.raises(DatasetError, match=r"2008_000002\.mat: no LabelMap can be read"):
            prepared(tree)

    def test_no_numbers(self, make_tree: MakeTree) -> None:
        from scipy.io import savemat

        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"LabelMap": np.zeros((2, 2, 3))})
        with pytest.raises(DatasetError, match=r"expected a LabelMap \(H, W\)"):
            prepared(tree)

    def test_a_label_beyond_459(self, make_tree: MakeTree) -> None:
        from scipy.io import savemat

        tree = make_tree("pascal_context_459")
        savemat(tree.sources[0], {"LabelMap": np.full((5, 7), 460)})
        with pytest.raises(DatasetError, match="values 460"):
            prepared(tree)


class TestAdeFull:
    def change_names(self, tree: Miniature, change: Callable[[list[dict[str, Any]]], None]) -> Path:
        path = tree.sources[0].with_name(tree.sources[0].name.replace("_seg.png", ".json"))
        content = json.loads(path.read_text(encoding="latin-1"))
        change(content["annotation"]["object"])
        path.write_text(json.dumps(content))
        return path

    def test_an_object_without_a_name(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        self.change_names(tree, lambda objects: objects.pop(0))
        with pytest.raises(DatasetError, match=r"objects 2978 \(\d+ pixels\) have no name in .*\.json"):
            prepared(tree)
        prepared(tree, allow_partial=True)
        path = tree.root / "ADE20K_2021_17_01/labels_847/training/ADE_train_00000001.png"
        labels = tree.expected[path]
        np.testing.assert_array_equal(np.array(Image.open(path)), np.where(labels == 0, 65535, labels))

    def test_a_file_without_names(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        path = self.change_names(tree, lambda objects: objects[0].pop("name"))
        with pytest.raises(DatasetError, match=rf"{path.name}: expected an .annotation. with a list"):
            prepared(tree)
        path.unlink()
        with pytest.raises(DatasetError, match=rf"{path.name}: cannot be read"):
            prepared(tree)

    def test_red_that_encodes_nothing(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        save(tree.sources[0], np.full((5, 7, 3), 7))
        with pytest.raises(DatasetError, match="red values that are no multiples of 10"):
            prepared(tree)
        assert not (tree.root / "ADE20K_2021_17_01/images_847/training/ADE_train_00000001.jpg").exists()

    def test_one_name_in_two_folders(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        place = tree.sources[0].parent
        (place.parent / "twice").mkdir()
        first = next(place.glob("*.jpg"))
        (place.parent / "twice" / first.name).write_bytes(first.read_bytes())
        with pytest.raises(DatasetError, match="have the same name"):
            tree.plan(Request(tree.root))

    def test_small_photos_are_copied_and_large_ones_shrunk(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        prepared(tree)
        for path in tree.root.glob("ADE20K_2021_17_01/images/ADE/*/*/*/*.jpg"):
            made = tree.root / "ADE20K_2021_17_01/images_847" / path.parts[-4] / path.name
            with Image.open(made) as small, Image.open(path) as published:
                if published.size != (514, 600):
                    assert made.read_bytes() == path.read_bytes()
                    continue
                assert small.size == (512, 598)
                wanted = np.asarray(published.resize((512, 598), Image.Resampling.BILINEAR), dtype=float)
                assert np.abs(np.asarray(small, dtype=float) - wanted).mean() < 4

    def test_a_photo_turned_by_its_tag_is_stored_as_its_labels_lie(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        path = tree.sources[0].with_name(tree.sources[0].name.replace("_seg.png", ".jpg"))
        tag = Image.Exif()
        tag[0x0112] = 6
        Image.open(path).convert("RGB").save(path, exif=tag)
        reports = prepare(tree.plan(Request(tree.root)))
        made = tree.root / "ADE20K_2021_17_01/images_847/training" / path.name
        with Image.open(made) as small:
            assert small.size == (7, 5)
            assert 0x0112 not in small.getexif()
        assert reports[0].tally.notes == []


def test_train_ids_where_the_label_ids_are_gone(make_tree: MakeTree) -> None:
    tree = make_tree("cityscapes")
    for path in tree.sources:
        path.unlink()
    prepared(tree)
    for path, labels in tree.expected.items():
        np.testing.assert_array_equal(np.array(Image.open(path)), labels)
