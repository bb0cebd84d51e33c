"""trainval_merged.json of the PASCAL in Detail challenge: which photo is in which phase, and its masks.

An object with "images" (image_id, file_name, height, width, phase: train, val or test), "annos_segmentation"
(image_id, category_id, segmentation: a run-length encoded mask of COCO's kind) and "categories" (category_id,
name). Category ids are those of the 459 labels of PASCAL Context. Other parts (bounding boxes, joints,
occlusion) are not read.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.data import vocabularies
from twostage.data.errors import DatasetError, LabelError
from twostage.data.prepare import found
from twostage.data.rle import RLEError, decode

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContextPhoto:
    """A photo and its masks. masks: (category id, run-length encoding), painted in this order."""

    stem: str
    height: int
    width: int
    masks: tuple[tuple[int, Mapping[str, Any]], ...]

    def paint(self, source: str) -> NDArray[np.int32]:
        """(H, W) int32 category ids, 0 where no mask lies.

        Raises:
            LabelError: a mask is damaged, or of another size than the photo; names source and photo.
        """
        values = np.zeros((self.height, self.width), dtype=np.int32)
        for category, encoding in self.masks:
            where = f"{source}: {self.stem}, a mask of category {category}"
            try:
                mask = decode(encoding).numpy()
            except RLEError as error:
                raise LabelError(f"{where}: {error}") from error
            if mask.shape != values.shape:
                raise LabelError(
                    f"{where}: {mask.shape} pixels (height, width), the photo has {values.shape}. "
                    "Download the file again."
                )
            values[mask] = category
        return values


@dataclass(frozen=True)
class ContextAnnotations:
    """phases: phase -> its photos in order of name; categories: ids that occur in annotations."""

    phases: dict[str, list[ContextPhoto]]
    categories: frozenset[int]


def read(path: Path) -> ContextAnnotations:
    """Read the whole file, its masks still encoded.

    Raises:
        DatasetError: missing, no JSON, without the parts above, or with ids that mean other classes.
    """
    content = _load(path)
    masks: dict[Any, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    phases: dict[str, list[ContextPhoto]] = defaultdict(list)
    try:
        for one in content["annos_segmentation"]:
            masks[one["image_id"]].append((int(one["category_id"]), one["segmentation"]))
        for one in sorted(content["images"], key=lambda image: str(image["file_name"])):
            stem, size = Path(one["file_name"]).stem, (int(one["height"]), int(one["width"]))
            phases[one["phase"]].append(ContextPhoto(stem, *size, tuple(masks[one["image_id"]])))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected images with image_id, file_name, height, width, phase and annos_segmentation "
            f"with image_id, category_id, segmentation; {error!r} is missing or odd. "
            f"Parts found: {found.some(content)}. Is this trainval_merged.json?"
        ) from error
    _require_same_words(path, content.get("categories"))
    used = frozenset(category for annotations in masks.values() for category, _ in annotations)
    return ContextAnnotations(dict(phases), used)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}). See datasets/README.md.") from error
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON, or cut off ({error}). Download it again.") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected an object, got {type(content).__name__}.")
    return content


def _require_same_words(path: Path, categories: Any) -> None:
    """A file that numbers its categories in another way would be read as other classes without a sign."""
    if not isinstance(categories, list):
        _log.warning("%s: has no list of categories, so that their ids cannot be compared.", path)
        return
    words = vocabularies.load("pascal_context_459").vocabulary.shown
    others, compared = [], 0
    for one in categories:
        given = one if isinstance(one, dict) else {}
        number, name = given.get("category_id", given.get("id")), given.get("name")
        if isinstance(number, int) and isinstance(name, str) and 1 <= number <= len(words):
            compared += 1
            if _bare(name) != _bare(words[number - 1]):
                others.append(f"{number} is {name!r}, here {words[number - 1]!r}")
    if compared and 2 * len(others) > compared:
        raise DatasetError(
            f"{path}: {len(others)} of {compared} categories have other names: {found.some(others)}. "
            "Its ids are not those of the 459 labels of PASCAL Context."
        )
    if others:
        _log.warning("%s: categories that are called otherwise: %s.", path, found.some(others))


def _bare(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())
