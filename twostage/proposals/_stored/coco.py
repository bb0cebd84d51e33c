"""COCO's JSON: a result list (run-length masks by image id), or an export with images and annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twostage.data import rle
from twostage.data.errors import DataError
from twostage.data.polygons import fill_polygons
from twostage.proposals._cache_files import CacheError, coco_entries
from twostage.proposals._stored.store import ids_of
from twostage.types import Proposals


@dataclass
class _Image:
    """size_hw: where an export tells it; entries: (place in the file, entry)."""

    size_hw: tuple[int, int] | None = None
    entries: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


class CocoStore:
    """Run-length masks (compressed or not, crowds too), polygons, and boxes where an entry has no outline.

    In an export an image goes by the stem of its file_name, its file_name and its id; in a result list by
    image_id. An image of the export without annotations has no masks.

    Raises:
        CacheError: entries that lack a part, that belong to no image of the export, or polygons in a list
        that does not say how large its images are.
    """

    def __init__(self, path: Path, content: Any) -> None:
        self._path = path
        self.hint = ""
        self.aliases: dict[str, str] = {}
        self._images: dict[str, _Image] = {}
        listed = content.get("images") if isinstance(content, dict) else None
        if listed is not None:
            self._list(listed)
        for place, entry in enumerate(coco_entries(path, content)):
            self._add(place, entry, known_images=listed is not None)
        self.ids = sorted(self._images)

    def digests(self) -> Mapping[str, str]:
        """From the entries that this program wrote."""
        first = ((one.entries[0][1], name) for name, one in self._images.items() if one.entries)
        pairs = ((str(entry.get("image_digest", "")), name) for entry, name in first)
        return {known: name for known, name in pairs if known}

    def read(self, image_id: str, size_hw: tuple[int, int]) -> Proposals:
        """Bool masks in the file's order; scores are 1 where the file has none."""
        image = self._images[image_id]
        masks, scores = [], []
        for place, entry in image.entries:
            if entry["segmentation"] is None:
                continue  # this program's sign for "nothing found"
            try:
                masks.append(_mask(entry, image.size_hw))
                score = entry.get("score", 1.0)
                scores.append(1.0 if score is None else float(score))
            except (DataError, TypeError, ValueError) as error:
                raise CacheError(f"{self._path}: image {image_id!r}, entry {place}: {error}") from error
        sizes = {mask.shape for mask in masks} | ({image.size_hw} if image.size_hw else set())
        if len(sizes) > 1:
            raise CacheError(
                f"{self._path}: Masks of image {image_id!r} have different sizes: {sorted(sizes)} (height, "
                "width)."
            )
        stacked = np.stack(masks) if masks else np.zeros((0, *(image.size_hw or size_hw)), dtype=bool)
        return Proposals(torch.from_numpy(stacked), torch.tensor(scores), source="cached")

    def _list(self, listed: Any) -> None:
        if not isinstance(listed, list) or not all(isinstance(one, dict) and "id" in one for one in listed):
            raise CacheError(f"{self._path}: expected images as a list of entries with id and file_name.")
        names = [str(one.get("file_name") or one["id"]) for one in listed]
        for name, image_id, one in zip(names, ids_of(names), listed, strict=True):
            if image_id in self._images:
                raise CacheError(f"{self._path}: two images are called {name!r}. Give every file a name.")
            self._images[image_id] = _Image(self._size(one))
            self.aliases |= {name: image_id, str(one["id"]): image_id}

    def _size(self, image: Mapping[str, Any]) -> tuple[int, int] | None:
        given = image.get("height"), image.get("width")
        if given == (None, None):
            return None
        if not all(isinstance(side, int) and side > 0 for side in given):
            raise CacheError(
                f"{self._path}: image {image['id']!r}: expected width and height in pixels, got "
                f"{image.get('width')!r} and {image.get('height')!r}."
            )
        return given  # type: ignore[return-value]

    def _add(self, place: int, entry: dict[str, Any], known_images: bool) -> None:
        told = str(entry["image_id"])
        name = self.aliases.get(told) if known_images else told
        if name is None:
            raise CacheError(
                f"{self._path}: entry {place} belongs to image {told!r}, which is not in the list of images."
            )
        image = self._images.setdefault(name, _Image())
        if isinstance(entry["segmentation"], list) and image.size_hw is None:
            raise CacheError(
                f"{self._path}: entry {place} is a polygon, and nothing says how large its image is: give "
                'an "images" list with width and height, or run-length encoded masks.'
            )
        image.entries.append((place, entry))


def _mask(entry: Mapping[str, Any], size_hw: tuple[int, int] | None) -> np.ndarray:
    """(H, W) bool of one entry; polygons and boxes are drawn at size_hw."""
    given = entry["segmentation"]
    if isinstance(given, Mapping):
        return rle.decode(given).numpy()
    assert size_hw is not None
    if not isinstance(given, list):
        raise CacheError(f"expected a polygon or a run-length encoding, got {type(given).__name__}.")
    return fill_polygons(_parts(given) if given else [_box(entry.get("bbox"))], size_hw)


def _parts(given: Sequence[Any]) -> Sequence[Any]:
    """Several polygons; some programs write a single one without the outer brackets."""
    return [given] if isinstance(given[0], int | float) else given


def _box(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4:
        raise CacheError("an entry has neither an outline nor a bbox of x, y, width, height.")
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y, x + width, y + height, x, y + height]
