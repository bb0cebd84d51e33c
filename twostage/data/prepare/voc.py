"""PASCAL VOC 2012 with the augmented masks: 0 background, 1..20 classes, 255 border -> 20 ids, or 21.

Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2010; Hariharan et al.: Semantic Contours
from Inverse Detectors, ICCV 2011, for the masks beyond the challenge's own. Background is no class among the
20, and ignored; among the 21 (validation photos only) it is class 0.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from twostage.data.benchmarks import Benchmark
from twostage.data.errors import DatasetError
from twostage.data.prepare import found
from twostage.data.prepare.pixel_values import by_stem
from twostage.data.prepare.plan import Request, Split

_log = logging.getLogger(__name__)

_OWN_TRAIN = 1_464
"""Names in the challenge's own train.txt."""

_LISTS = {
    "voc_train": (
        "train_aug.txt",
        "trainaug.txt",
        "train.txt",
        "ImageSets/Segmentation/train_aug.txt",
        "ImageSets/Segmentation/trainaug.txt",
    ),
    "voc_val": ("val.txt", "ImageSets/Segmentation/val.txt"),
}
"""Where lists are looked for, the first one counts."""

_PHOTOS, _ANNOTATIONS = "VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip"


_CLASS_LISTS = {20: "voc", 21: "voc21"}
"""Number of classes -> class list."""


def plan(request: Request, classes: Sequence[int] = (20,)) -> list[Split]:
    """VOC2012/{JPEGImages,SegmentationClassAug} and the two lists -> VOC2012/labels_{20,21}/SPLIT/*.png.

    Raises:
        DatasetError: a folder or list is missing, a list has another length, training names are in the
            validation list, or names lack photo or annotation.
    """
    root = request.root / "VOC2012"
    rows = [row for number in classes for row in request.choose(_CLASS_LISTS[number])]
    images = found.files(root / "JPEGImages", ".jpg", _PHOTOS)
    own, augmented = root / "SegmentationClass", root / "SegmentationClassAug"
    validation_only = all(_list_of(row) == "voc_val" for row in rows) and own.is_dir()
    masks = {}
    if augmented.is_dir() or not validation_only:
        masks = found.files(augmented, ".png", _ANNOTATIONS)
    lists = _lists(root, list(masks))
    if own.is_dir():
        # Some copies of the augmented masks leave the validation photos out; the challenge has them.
        masks = {**found.files(own, ".png", _PHOTOS), **masks}
    return [_split(row, images, masks, lists, request) for row in rows]


def _split(
    row: Benchmark,
    images: dict[str, Path],
    masks: dict[str, Path],
    lists: dict[str, tuple[Path, list[str]]],
    request: Request,
) -> Split:
    where, names = lists[_list_of(row)]
    if len(names) == _OWN_TRAIN:
        found.object_to(
            f"{where}: has the challenge's own {_OWN_TRAIN:,} names, expected the augmented list of "
            f"{row.photos:,}. Put that into {where.parent / 'train_aug.txt'}, or remove this file: the list "
            "then is all masks but those of the validation list.",
            request,
        )
    else:
        found.require_count(len(names), row.photos, where, "the list", request)
    return by_stem(row, images, masks, where, request, stems=names)


def _lists(root: Path, masks: list[str]) -> dict[str, tuple[Path, list[str]]]:
    """Row -> (file, its names), checked against each other: training on validation photos stays unnoticed."""
    val_list, train_list = _first(root, "voc_val"), _first(root, "voc_train")
    if val_list is None:
        raise DatasetError(
            f"{root}: expected one of {', '.join(_LISTS['voc_val'])}, found none. Unpack {_PHOTOS}."
        )
    val = found.names_in(val_list)
    if train_list is None:
        train = sorted(set(masks) - set(val))
        train_list = root / "SegmentationClassAug"
        _log.warning("%s: no list of the training names: all masks but those of %s.", root, val_list)
    else:
        train = found.names_in(train_list)
    shared = sorted(set(train) & set(val))
    if shared:
        raise DatasetError(
            f"{train_list}: {len(shared)} names are in {val_list} too: {found.some(shared)}. Training would "
            "see validation photos: remove them from the training list."
        )
    return {"voc_train": (train_list, train), "voc_val": (val_list, val)}


def _list_of(row: Benchmark) -> str:
    """Which list names the photos of a row."""
    return "voc_val" if Path(row.labels).name == "val" else "voc_train"


def _first(root: Path, row: str) -> Path | None:
    return next((root / place for place in _LISTS[row] if (root / place).is_file()), None)
