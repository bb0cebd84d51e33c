"""VOC's traps: validation photos in the training list, its own short list, masks in two folders."""

from __future__ import annotations

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


def maps(tree: Miniature) -> list[Path]:
    return [path for path in tree.expected if path.is_file()]


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
