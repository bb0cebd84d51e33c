"""Miniatures of the data sets whose annotations are one number a pixel in a PNG."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from miniature import Miniature, add, draw, photo, save, slowly
from PIL import Image

from twostage.data.prepare import ade20k, cityscapes, coco_stuff, voc

COCO_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]
COCO_IDS += list(range(92, 183))
CITYSCAPES = dict(
    zip(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
        range(19),
        strict=True,
    )
)


def coco(root: Path) -> Miniature:
    """Values are COCO ids less one; the second map of train has no class at all."""
    tree = Miniature(root, coco_stuff.plan, {"coco_stuff_train": 4, "coco_stuff_val": 2})
    mapping = {number - 1: place for place, number in enumerate(COCO_IDS)}
    for split, count in (("train2017", 4), ("val2017", 2)):
        for number in range(count):
            stem, empty = f"{number + 9:012d}", split == "train2017" and number == 1
            raw = draw([255, 11, 90] if empty else [0, 12, 20, 89, 91, 181, 255, 11, 90], number)
            add(
                tree,
                f"coco/stuffthingmaps/{split}/{stem}.png",
                raw,
                mapping,
                f"coco/labels_171/{split}/{stem}",
            )
            photo(root / f"coco/{split}/{stem}.jpg", raw.shape)
    return tree


def voc2012(root: Path) -> Miniature:
    """Augmented masks are grey, the challenge's own have a palette; lists name paths as some copies do."""
    return _voc2012(root, Miniature(root, voc.plan, {"voc_train": 3, "voc_val": 2}))


def voc2012_with_background(root: Path) -> Miniature:
    """The same photos; background is class 0, and only the validation photos are wanted."""
    plan = functools.partial(voc.plan, classes=(21,))
    tree = _voc2012(root, Miniature(root, plan, {"voc21_val": 2}))
    tree.expected.clear()
    for stem in ("2007_000033", "2007_000042"):
        with Image.open(root / f"VOC2012/SegmentationClassAug/{stem}.png") as raw:
            tree.expected[root / f"VOC2012/labels_21/val/{stem}.png"] = np.array(raw).astype(np.int64)
    return tree


def _voc2012(root: Path, tree: Miniature) -> Miniature:
    names = {
        "train_aug": ["2007_000032", "2008_000033", "2011_003276"],
        "val": ["2007_000033", "2007_000042"],
    }
    mapping = {number: number - 1 for number in range(1, 21)}
    folder = root / "VOC2012"
    for split, stems in names.items():
        for number, stem in enumerate(stems):
            raw = draw([0, 1, 15, 20, 255], number)
            add(
                tree,
                f"VOC2012/SegmentationClassAug/{stem}.png",
                raw,
                mapping,
                f"VOC2012/labels_20/{split}/{stem}",
            )
            photo(folder / "JPEGImages" / f"{stem}.jpg", raw.shape)
    lines = [f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png" for stem in names["train_aug"]]
    (folder / "train_aug.txt").write_text("\n".join(lines) + "\n")
    (folder / "val.txt").write_text("\n".join(names["val"]) + "\n")
    return tree


def ade(root: Path) -> Miniature:
    """Values 0..150."""
    tree = Miniature(root, ade20k.plan, {"ade20k_150_train": 3, "ade20k_150_val": 2})
    base = "ADEChallengeData2016"
    for split, short, count in (("training", "train", 3), ("validation", "val", 2)):
        for number in range(1, count + 1):
            stem = f"ADE_{short}_{number:08d}"
            raw, mapping = draw([0, 1, 77, 150], number), {value: value - 1 for value in range(1, 151)}
            add(
                tree,
                f"{base}/annotations/{split}/{stem}.png",
                raw,
                mapping,
                f"{base}/labels_150/{split}/{stem}",
            )
            photo(root / base / "images" / split / f"{stem}.jpg", raw.shape)
    return tree


def streets(root: Path) -> Miniature:
    """A folder a city, four files an annotation as in the archive."""
    tree = Miniature(root, cityscapes.plan, {"cityscapes_train": 3, "cityscapes_val": 1})
    for split, city, count in (("train", "aachen", 2), ("train", "ulm", 1), ("val", "munster", 1)):
        for number in range(count):
            stem = f"{city}_{number:06d}_000019"
            raw = draw([0, 6, 7, 11, 18, 19, 29, 33, 255], number)
            place = f"cityscapes/gtFine/{split}/{city}/{stem}_gtFine"
            add(tree, f"{place}_labelIds.png", raw, CITYSCAPES, f"cityscapes/labels_19/{split}/{stem}")
            save(root / f"{place}_labelTrainIds.png", slowly(raw, CITYSCAPES, 255))
            save(root / f"{place}_color.png", raw)
            (root / f"{place}_polygons.json").write_text("{}")
            photo(root / f"cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", raw.shape)
    return tree
