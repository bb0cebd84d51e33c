"""ADE20K's full data set (release 2021_17_01): thousands of objects, of which 847 are classes here.

Each photo has a *_seg.png, whose red and green channels hold the number of the object (red / 10 * 256 +
green, 0 for none), and a .json that gives the name of each such number. Classes are matched by these names,
which are the names of the class list, photo by photo: no index file (a pickle) has to be opened, and a number
whose name the photo does not give is found out.

As usual with this vocabulary (Cheng et al., MaskFormer, NeurIPS 2021), photos larger than 512 pixels on both
sides are shrunk to a shorter side of 512: bilinear for the photo, nearest neighbour for the labels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twostage.data.atomic import replacing
from twostage.data.benchmarks import Benchmark
from twostage.data.errors import LabelError
from twostage.data.image_io import read_image
from twostage.data.prepare import found
from twostage.data.prepare.plan import Converter, Item, Request, Split
from twostage.data.prepare.work import image_sizes_hw

SHORT_SIDE = 512
_JPEG_QUALITY = 95
_ARCHIVE = "ADE20K_2021_17_01.zip"
_UNKNOWN = -1


def plan(request: Request) -> list[Split]:
    """ADE20K_2021_17_01/images/ADE/SPLIT/**/ADE_*{.jpg,_seg.png,.json} -> images_847/SPLIT, labels_847/SPLIT.

    Raises:
        DatasetError: a folder is missing or unpacked in part, or photos and annotations do not match.
    """
    return [_split(row, request) for row in request.choose("ade20k_847")]


def _split(row: Benchmark, request: Request) -> Split:
    photos, folder = row.image_folder(request.root), row.label_folder(request.root)
    published = photos.parents[1] / "images" / "ADE" / photos.name
    images = found.files(published, ".jpg", _ARCHIVE, recursive=True)
    masks = found.files(published, "_seg.png", _ARCHIVE, recursive=True)
    found.require_count(len(images), row.photos, published, f"the photos of {_ARCHIVE}", request)
    found.require_count(len(masks), row.photos, published, f"the annotations of {_ARCHIVE}", request)
    stems = found.require_pairs(sorted({*images, *masks}), images, masks, published, request)
    items = tuple(Item(s, photos / f"{s}.jpg", masks[s], folder / f"{s}.png", extra=images[s]) for s in stems)
    ids = {bare(word): place for place, word in enumerate(row.classes.vocabulary.shown)}
    converter = NamedObjects(ids, row.void, request.allow_partial)
    return Split(row, request.root, converter, items, photos)


def bare(name: str) -> str:
    """A name as it is compared: small letters, one blank between words."""
    return " ".join(name.lower().split())


@dataclass(frozen=True)
class NamedObjects(Converter):
    """Items whose source is a *_seg.png and whose `extra` is the published photo.

    ids: bare name -> class; unknown_is_void: numbers without a name are ignored, not an error.
    """

    ids: Mapping[str, int]
    void: int
    unknown_is_void: bool = False

    def labels(self, item: Item) -> NDArray[np.integer]:
        """See Converter. At the prepared size."""
        objects = object_numbers(item.source)
        names = object_names(item.extra.with_suffix(".json"))
        table = np.full(int(objects.max(initial=0)) + 1, _UNKNOWN, dtype=np.int32)
        table[0] = self.void
        for number, name in names.items():
            if 0 < number < len(table):  # 0 stands for no object, whatever a file calls it
                table[number] = self.ids.get(bare(name), self.void)
        labels = table[objects]
        if (labels == _UNKNOWN).any() and not self.unknown_is_void:
            strange = np.unique(objects[labels == _UNKNOWN]).tolist()
            raise LabelError(
                f"{item.source}: objects {found.some(map(str, strange))} ({int((labels == _UNKNOWN).sum())} "
                f"pixels) have no name in {item.extra.with_suffix('.json')}. With --allow-partial they are "
                "ignored."
            )
        labels[labels == _UNKNOWN] = self.void
        return _nearest(labels, prepared_size_hw(*labels.shape))

    def write_image(self, item: Item) -> None:
        """The photo, upright or as stored, whichever its annotation fits, shrunk where it is large."""
        published: Path = item.extra
        with Image.open(item.source) as annotation:
            size_hw = (annotation.height, annotation.width)
        upright, stored = image_sizes_hw(published)
        if size_hw not in (upright, stored):
            raise LabelError(
                f"{item.source}: {size_hw[1]} x {size_hw[0]} pixels (width x height), but its photo "
                f"{published} has {upright[1]} x {upright[0]}. Unpack {_ARCHIVE} again."
            )
        small = prepared_size_hw(*size_hw)
        if small == size_hw == upright:
            with replacing(item.image) as stream, published.open("rb") as original:
                shutil.copyfileobj(original, stream)
            return
        photo = _pixels(published, as_stored=size_hw != upright)
        with replacing(item.image) as stream:
            photo.resize(small[::-1], Image.Resampling.BILINEAR).save(
                stream, format="JPEG", quality=_JPEG_QUALITY, subsampling=0
            )


def prepared_size_hw(height: int, width: int) -> tuple[int, int]:
    """The size after shrinking: unchanged unless both sides exceed 512, else the shorter one is 512."""
    short = min(height, width)
    if short <= SHORT_SIDE:
        return height, width
    scale = SHORT_SIDE / short
    return int(height * scale + 0.5), int(width * scale + 0.5)


def object_numbers(path: Path) -> NDArray[np.int32]:
    """(H, W) int32 of a *_seg.png: red / 10 * 256 + green.

    Raises:
        ImageReadError: missing or broken. LabelError: red values that are no multiples of ten.
    """
    red, green, _ = read_image(path).numpy().astype(np.int32)
    if (red % 10).any():
        raise LabelError(
            f"{path}: red values that are no multiples of 10, so this is no object annotation as published "
            "(was it saved as JPEG, or resized?)."
        )
    numbers: NDArray[np.int32] = red // 10 * 256 + green
    return numbers


def object_names(path: Path) -> dict[int, str]:
    """Number -> name of each object (and part) that the photo's .json lists.

    Raises:
        LabelError: missing, not JSON, or without "annotation" and "object".
    """
    try:
        objects = json.loads(_text(path))["annotation"]["object"]
        return {int(one["name_ndx"]): str(one["name"]) for one in objects}
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror}). Unpack {_ARCHIVE} again.") from error
    except (ValueError, TypeError, LookupError) as error:
        raise LabelError(
            f'{path}: expected an "annotation" with a list "object" of name_ndx and name ({error!r}). Unpack '
            f"{_ARCHIVE} again."
        ) from error


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")  # annotators' names and free words were typed in many places


def _nearest(labels: NDArray[np.int32], size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Nearest neighbour with pixel centres aligned, in whole numbers: the same on every machine."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, size_hw, strict=True)
    )
    shrunk: NDArray[np.int32] = labels[rows[:, None], columns]
    return shrunk


def _pixels(path: Path, as_stored: bool) -> Image.Image:
    if not as_stored:
        return Image.fromarray(read_image(path).permute(1, 2, 0).numpy())
    with Image.open(path) as image:
        return image.convert("RGB")
