"""COCO-Stuff 164k: stuffthingmaps (COCO id - 1 a pixel) -> 171 contiguous ids.

Caesar, Uijlings, Ferrari: COCO-Stuff, CVPR 2018. Seen and unseen classes stay together: the class list says
which is which, and a map whose pixels are all ignored is written like any other.
"""

from __future__ import annotations

from twostage.data.prepare import found
from twostage.data.prepare.pixel_values import by_stem
from twostage.data.prepare.plan import Request, Split

_ANNOTATIONS = "stuffthingmaps_trainval2017.zip"


def plan(request: Request) -> list[Split]:
    """coco/SPLIT/*.jpg and coco/stuffthingmaps/SPLIT/*.png -> coco/labels_171/SPLIT/*.png.

    Raises:
        DatasetError: a folder is missing or unpacked in part, or photos and annotations do not match.
    """
    splits = []
    for row in request.choose("coco_stuff"):
        photos = row.image_folder(request.root)
        annotations = photos.parent / "stuffthingmaps" / photos.name
        images = found.files(photos, ".jpg", f"{photos.name}.zip")
        masks = found.files(annotations, ".png", _ANNOTATIONS)
        found.require_count(len(images), row.photos, photos, f"{photos.name}.zip", request)
        found.require_count(len(masks), row.photos, annotations, _ANNOTATIONS, request)
        splits.append(by_stem(row, images, masks, annotations, request))
    return splits
