"""Label Studio's JSON export: tasks with brush masks, polygons, rectangles and ellipses.

Coordinates are percent of the photo's width and height, rotations degrees clockwise, a rectangle's about its
first corner (x, y), an ellipse's about its centre.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import torch
from numpy.typing import NDArray

from twostage.data.brush_rle import decode_brush
from twostage.data.errors import DataError
from twostage.data.image_io import IMAGE_SUFFIXES
from twostage.data.polygons import fill_polygon
from twostage.proposals._cache_files import CacheError
from twostage.proposals._stored.store import ids_of, stem_of
from twostage.types import Proposals

logger = logging.getLogger(__name__)

Size = tuple[int, int]
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""
_ELLIPSE_POINTS = 256


class LabelStudioStore:
    """The regions of every annotation that was not cancelled; of predictions where a task has no annotation.

    An image goes by the stem of its file, without the prefix of an upload; also by the file's name and by the
    number of its task. Class names are left out: proposals have none.

    Raises:
        CacheError: a task without an image, two tasks of one image, or annotations left out of the export.
    """

    def __init__(self, path: Path, tasks: Sequence[Any]) -> None:
        self._path = path
        self.hint = ""
        names = [self._image_name(place, task) for place, task in enumerate(tasks)]
        ids = ids_of([_without_prefix(name) for name in names])
        often = Counter(ids)
        ids = [own if often[own] == 1 else stem_of(name) for own, name in zip(ids, names, strict=True)]
        self._tasks: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        for image_id, name, task in zip(ids, names, tasks, strict=True):
            if image_id in self._tasks:
                raise CacheError(f"{path}: two tasks are of the image {name!r}. Keep one of them.")
            self._tasks[image_id] = task
            file_name = name.rpartition("/")[2]
            self.aliases |= {file_name: image_id, stem_of(name): image_id}
            if "id" in task:
                self.aliases.setdefault(str(task["id"]), image_id)
        self.ids = sorted(self._tasks)

    def digests(self) -> Mapping[str, str]:
        """None: Label Studio knows no pixels."""
        return {}

    def read(self, image_id: str, size_hw: Size) -> Proposals:
        """Bool masks in the order of the export; scores are 1 for people, a model's own for predictions."""
        found = [one for one in _results(self._tasks[image_id]) if self._is_region(one[0])]
        sizes = {size for result, _ in found if (size := _original_size(result)) is not None}
        if len(sizes) > 1:
            raise CacheError(
                f"{self._path}: Masks of image {image_id!r} have different sizes: {sorted(sizes)} (height, "
                "width)."
            )
        drawn_hw = sizes.pop() if sizes else size_hw
        masks = np.zeros((len(found), *drawn_hw), dtype=bool)
        scores = torch.ones(len(found))
        for number, (result, score) in enumerate(found):
            try:
                masks[number] = _draw(result, drawn_hw)
                scores[number] = score
            except (DataError, KeyError, TypeError, ValueError) as error:
                told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                raise CacheError(
                    f"{self._path}: image {image_id!r}, region {result.get('id', number)!r} "
                    f"({result['type']}): {told}"
                ) from error
        return Proposals(torch.from_numpy(masks), scores, source="cached")

    def _image_name(self, place: int, task: Any) -> str:
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict):
            raise CacheError(f"{self._path}: task {place} has no data with an image. {_EXPORT}")
        if any(
            not isinstance(one, dict) for one in [*_list(task, "annotations"), *_list(task, "predictions")]
        ):
            raise CacheError(f"{self._path}: task {place}: its annotations were left out. {_EXPORT}")
        if task.get("file_upload"):
            return str(task["file_upload"])
        texts = [value for key, value in data.items() if isinstance(value, str) and _is_image(key, value)]
        if len(texts) != 1:
            raise CacheError(
                f"{self._path}: task {place}: expected one image in its data, found {len(texts)} among "
                f"{', '.join(data) or 'nothing'}."
            )
        return _path_of(texts[0])

    def _is_region(self, result: Mapping[str, Any]) -> bool:
        kind = str(result.get("type", ""))
        if _kind(kind) in _DRAW:
            return True
        if isinstance(result.get("value"), dict) and "original_width" in result:
            logger.warning("%s: regions of type %s are no masks and are left out.", self._path, kind)
        return False


_EXPORT = "Export from Label Studio as JSON (not JSON-MIN)."


def _list(task: Mapping[str, Any], key: str) -> list[Any]:
    value = task.get(key)
    return value if isinstance(value, list) else []


def _results(task: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """The results that count, each with its score."""
    made = [one for one in _list(task, "annotations") if not one.get("was_cancelled")]
    for one in made or _list(task, "predictions"):
        whole = 1.0 if made else one.get("score")
        for result in _list(one, "result"):
            own = result.get("score")
            yield result, float(next((score for score in (own, whole) if score is not None), 1.0))


def _original_size(result: Mapping[str, Any]) -> Size | None:
    height, width = result.get("original_height"), result.get("original_width")
    return (int(height), int(width)) if height and width else None


def _kind(name: str) -> str:
    return name.removesuffix("labels")


def _draw(result: Mapping[str, Any], size_hw: Size) -> NDArray[np.bool_]:
    if result.get("image_rotation"):
        raise CacheError(
            f"it was drawn on the photo turned by {result['image_rotation']} degrees. Turn the file itself, "
            "and annotate it unturned."
        )
    return _DRAW[_kind(str(result["type"]))](result["value"], size_hw)


def _brush(value: Mapping[str, Any], size_hw: Size) -> NDArray[np.bool_]:
    return decode_brush(value["rle"], size_hw)


def _polygon(value: Mapping[str, Any], size_hw: Size) -> NDArray[np.bool_]:
    points = np.asarray(value["points"], dtype=np.float64)
    return fill_polygon(points * _per_cent(size_hw) if points.ndim == 2 else points, size_hw)


def _rectangle(value: Mapping[str, Any], size_hw: Size) -> NDArray[np.bool_]:
    corner = np.array([value["x"], value["y"]], dtype=np.float64) * _per_cent(size_hw)
    width, height = np.array([value["width"], value["height"]], dtype=np.float64) * _per_cent(size_hw)
    around = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    return fill_polygon(corner + _turned(around, value), size_hw)


def _ellipse(value: Mapping[str, Any], size_hw: Size) -> NDArray[np.bool_]:
    centre = np.array([value["x"], value["y"]], dtype=np.float64) * _per_cent(size_hw)
    radii = np.array([value["radiusX"], value["radiusY"]], dtype=np.float64) * _per_cent(size_hw)
    angles = np.linspace(0, 2 * math.pi, _ELLIPSE_POINTS, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return fill_polygon(centre + _turned(around, value), size_hw)


def _per_cent(size_hw: Size) -> NDArray[np.float64]:
    """Pixels in one percent, x and y."""
    return np.array([size_hw[1], size_hw[0]]) / 100


def _turned(around: NDArray[np.float64], value: Mapping[str, Any]) -> NDArray[np.float64]:
    """(P, 2) offsets x, y turned clockwise (y points down) by the region's rotation."""
    angle = math.radians(float(value.get("rotation") or 0))
    cosine, sine = math.cos(angle), math.sin(angle)
    turned: NDArray[np.float64] = around @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


_DRAW: dict[str, Callable[[Mapping[str, Any], Size], NDArray[np.bool_]]] = {
    "brush": _brush,
    "polygon": _polygon,
    "rectangle": _rectangle,
    "ellipse": _ellipse,
}


def _is_image(key: str, value: str) -> bool:
    return key == "image" or Path(_path_of(value)).suffix.lower() in IMAGE_SUFFIXES


def _path_of(address: str) -> str:
    """The path in a URL, a bucket or local storage (?d=...), without what else stands in the address."""
    parts = urlsplit(address)
    inner = parse_qs(parts.query).get("d", [])
    return unquote(inner[0] if parts.path.endswith("/") and inner else parts.path)


def _without_prefix(name: str) -> str:
    folder, slash, file_name = name.rpartition("/")
    return folder + slash + _UPLOAD_PREFIX.sub("", file_name)
