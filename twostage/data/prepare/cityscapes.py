"""Cityscapes, fine annotations: labelIds (or labelTrainIds) of each city -> 19 contiguous ids, one folder.

Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016.
"""

from __future__ import annotations

from pathlib import Path

from twostage.data.prepare import found
from twostage.data.prepare.pixel_values import by_stem
from twostage.data.prepare.plan import Request, Split
from twostage.data.published_labels import PublishedLabels

_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
_TRAINED = PublishedLabels(tuple(range(19)), (255,))
_PHOTOS, _ANNOTATIONS = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"


def plan(request: Request) -> list[Split]:
    """cityscapes/{leftImg8bit,gtFine}/SPLIT/CITY/* -> cityscapes/labels_19/SPLIT/CITY_*.png.

    Raises:
        DatasetError: a folder is missing or unpacked in part, or photos and annotations do not match.
    """
    splits = []
    for row in request.choose("cityscapes"):
        photos = row.image_folder(request.root)
        annotations = photos.parents[1] / "gtFine" / photos.name
        images = found.files(photos, row.image_suffix, _PHOTOS, recursive=True)
        trained = _has_train_ids_only(annotations)
        ending = _TRAIN_IDS if trained else _LABEL_IDS
        masks = found.files(annotations, ending, _ANNOTATIONS, recursive=True)
        found.require_count(len(images), row.photos, photos, _PHOTOS, request)
        found.require_count(len(masks), row.photos, annotations, _ANNOTATIONS, request)
        labels = _TRAINED if trained else None
        splits.append(by_stem(row, images, masks, annotations, request, labels=labels))
    return splits


def _has_train_ids_only(folder: Path) -> bool:
    """The archive has labelIds; some keep only the labelTrainIds made from them."""
    return not any(folder.rglob(f"*{_LABEL_IDS}")) and any(folder.rglob(f"*{_TRAIN_IDS}"))
