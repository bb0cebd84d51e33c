"""Polygons to masks: a pixel belongs to a polygon when its centre lies inside.

Coordinates are continuous, x to the right and y down, with the photo's corner at (0, 0) and the centre of its
first pixel at (0.5, 0.5), as in COCO. A rectangle with whole corners therefore covers exactly width times
height pixels, and polygons with a common edge neither overlap nor leave a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.data.errors import DataError


class PolygonError(DataError):
    """Points that enclose nothing: fewer than three, an odd count of numbers, or not finite."""


def fill_polygon(points_xy: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """points_xy: (P, 2) or flat x, y, x, y, ... in pixels -> (H, W) bool; what lies outside is cut off.

    Where the outline crosses itself, a point is inside when a ray from it crosses an odd number of edges.

    Raises:
        PolygonError: fewer than three points, or coordinates that are no finite numbers.
    """
    height, width = size_hw
    points = _points(points_xy)
    ends = np.roll(points, -1, axis=0)
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    for (x, y), (x_end, y_end) in zip(points, ends, strict=True):
        # Rows whose centre lies in [low, high): each corner counts for one of its two edges.
        low, high = sorted((y, y_end))
        first, last = (int(np.clip(np.ceil(edge - 0.5), 0, height)) for edge in (low, high))
        rows = np.arange(first, last)
        if len(rows) == 0:
            continue
        crossings = x + (rows + 0.5 - y) * ((x_end - x) / (y_end - y))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
        toggles[rows, columns] += 1
    inside: NDArray[np.bool_] = np.cumsum(toggles[:, :width], axis=1) % 2 == 1
    return inside


def fill_polygons(parts: Sequence[Any], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The union of several polygons, the parts of one thing: (H, W) bool.

    Raises:
        PolygonError: as fill_polygon; the message counts the parts from 0.
    """
    mask = np.zeros(size_hw, dtype=bool)
    for number, part in enumerate(parts):
        try:
            mask |= fill_polygon(part, size_hw)
        except PolygonError as error:
            raise PolygonError(f"part {number}: {error}") from error
    return mask


def _points(points_xy: Any) -> NDArray[np.float64]:
    try:
        points = np.asarray(points_xy, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PolygonError("a polygon is a list of numbers x, y, x, y, ...") from error
    if points.ndim == 1 and len(points) % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise PolygonError(
            f"a polygon needs at least three points x, y; got {points.size} numbers"
            f"{', an odd count' if points.size % 2 else ''}."
        )
    if not np.isfinite(points).all():
        raise PolygonError("a polygon has coordinates that are not finite numbers.")
    return points
