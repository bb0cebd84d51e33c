"""PASCAL Context on the photos of VOC 2010: 59 frequent classes, or all 459.

Mottaghi et al.: The Role of Context for Object Detection and Semantic Segmentation in the Wild, CVPR 2014.
Published twice: as one JSON file (trainval_merged.json) and as a MATLAB file a photo (trainval/*.mat with a
"LabelMap" of 1..459). Both are read here without the challenge's own compiled package.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twostage.data.benchmarks import Benchmark
from twostage.data.errors import DatasetError, LabelError
from twostage.data.prepare import context_json, found
from twostage.data.prepare.context_json import ContextPhoto
from twostage.data.prepare.plan import Converter, Item, Request, Split
from twostage.data.published_labels import PublishedLabels, published

_log = logging.getLogger(__name__)

Annotations = Literal["auto", "json", "mat"]

_JSON, _MATLAB, _PHOTOS = "trainval_merged.json", "trainval.tar.gz", "VOCtrainval_03-May-2010.tar"
_COUNTS_IN_USE = (4_996, 5_104)
"""Photos of train and val that other readers of the JSON count; the published split has 4,998 and 5,105."""

_MERGED_CLASSES = 60
"""Categories (background among them) of the reduced annotation, too few to be all 459."""


def plan(request: Request, classes: Sequence[int] = (59,), annotations: Annotations = "auto") -> list[Split]:
    """VOC2010/{JPEGImages,trainval_merged.json or trainval} -> VOC2010/labels_{59,459}/SPLIT/*.png.

    annotations: "auto" takes the JSON for 59 and the MATLAB files for 459 classes, else what is there.

    Raises:
        DatasetError: files are missing, of another structure, or do not match.
    """
    root = request.root / "VOC2010"
    chosen = [row for number in classes for row in request.choose(f"pascal_context_{number}")]
    images = found.files(root / "JPEGImages", ".jpg", _PHOTOS)
    from_json: context_json.ContextAnnotations | None = None
    splits = []
    for row in chosen:
        if _kind(root, row, annotations) == "mat":
            splits.append(_from_matlab(row, root, images, request))
            continue
        from_json = from_json or context_json.read(root / _JSON)
        splits.append(_from_json(row, root, images, from_json, request))
    return splits


@dataclass(frozen=True)
class JsonMasks(Converter):
    """Items whose `extra` is a ContextPhoto."""

    published: PublishedLabels
    void: int

    def labels(self, item: Item) -> NDArray[np.integer]:
        """See Converter."""
        photo: ContextPhoto = item.extra
        painted = photo.paint(str(item.source))
        return self.published.to_contiguous(painted, self.void, f"{item.source}: {item.stem}")


@dataclass(frozen=True)
class MatlabMaps(Converter):
    """Items whose source is a MATLAB file with a LabelMap (H, W)."""

    published: PublishedLabels
    void: int

    def labels(self, item: Item) -> NDArray[np.integer]:
        """See Converter."""
        return self.published.to_contiguous(label_map(item.source), self.void, str(item.source))


def label_map(path: Path) -> NDArray[np.int32]:
    """(H, W) int32, the "LabelMap" of a MATLAB file.

    Raises:
        LabelError: the file is missing, damaged, or has no such map.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        values = np.asarray(loadmat(path)["LabelMap"])
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,
        MatReadError,
        zlib.error,
    ) as error:
        raise LabelError(f"{path}: no LabelMap can be read ({error}). Unpack {_MATLAB} again.") from error
    if values.ndim != 2 or values.dtype.kind not in "iuf" or values.size == 0:
        raise LabelError(f"{path}: expected a LabelMap (H, W) of numbers, got {values.shape} {values.dtype}.")
    return values.astype(np.int32)


def _kind(root: Path, row: Benchmark, wanted: Annotations) -> Annotations:
    there = {"json": (root / _JSON).is_file(), "mat": (root / "trainval").is_dir()}
    if wanted != "auto":
        return wanted
    order: list[Annotations] = ["json", "mat"] if row.class_list.endswith("_59") else ["mat", "json"]
    for kind in order:
        if there[kind]:
            return kind
    raise DatasetError(
        f"{root}: expected {_JSON}, or the folder trainval of {_MATLAB}, found neither. datasets/README.md "
        "says where to get them."
    )


def _from_json(
    row: Benchmark,
    root: Path,
    images: dict[str, Path],
    annotations: context_json.ContextAnnotations,
    request: Request,
) -> Split:
    path, folder = root / _JSON, row.label_folder(request.root)
    if not row.class_list.endswith("_59") and len(annotations.categories) <= _MERGED_CLASSES:
        raise DatasetError(
            f"{path}: has masks of {len(annotations.categories)} categories only, not of 459. For {row.name} "
            f"unpack {_MATLAB} into {root}: it has all of them."
        )
    photos = {photo.stem: photo for photo in annotations.phases.get(folder.name, [])}
    if len(photos) in _COUNTS_IN_USE:
        _log.warning(
            "%s: %d photos in %s; the published split has %d.", path, len(photos), folder.name, row.photos
        )
    else:
        found.require_count(len(photos), row.photos, path, f"the phase {folder.name!r}", request)
    sources = dict.fromkeys(photos, path)
    stems = found.require_pairs(photos, images, sources, path, request)
    items = tuple(Item(s, images[s], path, folder / f"{s}.png", photos[s]) for s in stems)
    return Split(row, request.root, JsonMasks(published(row.class_list), row.void), items)


def _from_matlab(row: Benchmark, root: Path, images: dict[str, Path], request: Request) -> Split:
    folder = row.label_folder(request.root)
    names = root / "ImageSets" / "Main" / f"{folder.name}.txt"
    maps = found.files(root / "trainval", ".mat", _MATLAB)
    stems = found.names_in(names)
    found.require_count(len(stems), row.photos, names, "the list", request)
    stems = found.require_pairs(stems, images, maps, names, request)
    items = tuple(Item(s, images[s], maps[s], folder / f"{s}.png") for s in stems)
    return Split(row, request.root, MatlabMaps(published(row.class_list), row.void), items)
