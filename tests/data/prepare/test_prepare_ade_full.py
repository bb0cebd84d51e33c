"""ADE20K's full set: names beside the photo, numbers in two colour channels, photos that shrink."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miniature import MakeTree, Miniature, save
from PIL import Image

from twostage.data.errors import DatasetError
from twostage.data.prepare.plan import Request
from twostage.data.prepare.run import prepare


def prepared(tree: Miniature, **options: Any) -> None:
    prepare(tree.plan(Request(tree.root, **options)))


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

    def test_an_object_that_is_numbered_zero_names_no_pixel(self, make_tree: MakeTree) -> None:
        tree = make_tree("ade20k_847")
        self.change_names(tree, lambda objects: objects.append({"name_ndx": 0, "name": "wall"}))
        prepared(tree)
        path = tree.root / "ADE20K_2021_17_01/labels_847/training/ADE_train_00000001.png"
        np.testing.assert_array_equal(np.array(Image.open(path)), tree.expected[path])

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
