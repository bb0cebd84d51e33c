"""ADE20K's scene parsing challenge: annotations 1..150, 0 for anything else -> 150 contiguous ids.

Zhou et al.: Scene Parsing through ADE20K Dataset, CVPR 2017.
"""

from __future__ import annotations

from twostage.data.prepare import found
from twostage.data.prepare.pixel_values import by_stem
from twostage.data.prepare.plan import Request, Split

_ARCHIVE = "ADEChallengeData2016.zip"


def plan(request: Request) -> list[Split]:
    """ADEChallengeData2016/{images,annotations}/SPLIT -> ADEChallengeData2016/labels_150/SPLIT/*.png.

    Raises:
        DatasetError: a folder is missing or unpacked in part, or photos and annotations do not match.
    """
    splits = []
    for row in request.choose("ade20k_150"):
        photos = row.image_folder(request.root)
        annotations = photos.parents[1] / "annotations" / photos.name
        images = found.files(photos, ".jpg", _ARCHIVE)
        masks = found.files(annotations, ".png", _ARCHIVE)
        found.require_count(len(images), row.photos, photos, _ARCHIVE, request)
        found.require_count(len(masks), row.photos, annotations, _ARCHIVE, request)
        splits.append(by_stem(row, images, masks, annotations, request))
    return splits
