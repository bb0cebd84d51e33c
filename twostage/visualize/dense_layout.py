"""Where everything stands on a contact sheet of dense readouts, in pixels from the top left: numbers alone,
so that they can be tested without looking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

AREA = 220 * 220
"""Pixels of a tile, whatever the photo's shape."""
LONGEST = 440
NARROWEST_CELL = 150
"""A cell is never narrower than this, so that captions below upright photos can be read."""
MOST_LEGEND_ROWS = 16


@dataclass(frozen=True)
class Layout:
    """Photo and legend above, `rows` rows of `columns` tiles below.

    tile_hw: of all tiles; letters: height of captions; legend: (columns, rows, entries) of the legend.
    """

    tile_hw: tuple[int, int]
    rows: int
    columns: int
    letters: int = 13
    gap: int = 8
    legend: tuple[int, int, int] = (1, 0, 0)

    @classmethod
    def of(cls, image_hw: tuple[int, int], rows: int, columns: int) -> Layout:
        """For a photo of this size; the legend comes later."""
        height, width = image_hw
        ratio = min(sqrt(AREA / (height * width)), LONGEST / max(height, width))
        return cls((max(round(height * ratio), 1), max(round(width * ratio), 1)), rows, columns)

    def with_legend(self, entries: int, widest_name: int) -> Layout:
        """With room for the names of the legend, in as many columns as there is width for."""
        wanted = widest_name + round(1.5 * self.letters) + self.gap
        columns = max(self._legend_width // max(wanted, 1), 1)
        rows = min(-(-entries // columns), max(MOST_LEGEND_ROWS, self.tile_hw[0] // self.line - 2))
        return replace(self, legend=(columns, rows, entries))

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return round(1.6 * self.letters)

    @property
    def cell_width(self) -> int:
        """Of a tile or of its caption, whichever needs more."""
        return max(self.tile_hw[1], NARROWEST_CELL)

    @property
    def caption_width(self) -> int:
        """Room for a caption, some of it left free before the next."""
        return self.cell_width - self.letters // 2

    @property
    def width(self) -> int:
        """Of all columns together."""
        return self.columns * (self.cell_width + self.gap) - self.gap

    @property
    def _legend_width(self) -> int:
        return self.width - self.cell_width - 2 * self.gap

    @property
    def _head(self) -> int:
        """Height of photo and legend."""
        return max(self.tile_hw[0], (self.legend[1] + 2) * self.line)

    @property
    def _row(self) -> int:
        """Height of a row: title, captions, tiles, air."""
        return 2 * self.line + 4 + self.tile_hw[0] + 2 * self.gap

    @property
    def size_hw(self) -> tuple[int, int]:
        """Of the whole sheet."""
        return 2 * self.gap + self._head + self.rows * self._row, self.width + 2 * self.gap

    @property
    def photo_xy(self) -> tuple[int, int]:
        """Top left corner of the photo."""
        return self.gap, self.gap

    def _row_top(self, row: int) -> int:
        return 2 * self.gap + self._head + row * self._row

    def title_xy(self, row: int) -> tuple[int, int]:
        """Left end of the middle line of a row's title."""
        return self.gap, self._row_top(row) + self.line // 2 + 2

    def caption_xy(self, row: int, column: int) -> tuple[int, int]:
        """The same for a tile's caption."""
        return self._left(column), self._row_top(row) + self.line + 4 + self.line // 2

    def tile_xy(self, row: int, column: int) -> tuple[int, int]:
        """Top left corner of a tile."""
        return self._left(column), self._row_top(row) + 2 * self.line + 4

    def _left(self, column: int) -> int:
        return self.gap + column * (self.cell_width + self.gap)

    @property
    def legend_shown(self) -> int:
        """How many entries have room; the last place then says how many have not."""
        columns, rows, entries = self.legend
        return entries if entries <= columns * rows else columns * rows - 1

    @property
    def name_width(self) -> int:
        """Room for a name in the legend."""
        return self._legend_width // self.legend[0] - round(1.5 * self.letters) - self.gap

    def legend_xy(self, number: int) -> tuple[int, int]:
        """Left end of the middle line of an entry; filled column by column."""
        columns, rows, _ = self.legend
        column, row = number // max(rows, 1), number % max(rows, 1)
        left = self._left(1) + self.gap + column * (self._legend_width // columns)
        return left, self.gap + row * self.line + self.line // 2

    @property
    def scale(self) -> tuple[int, int, int]:
        """Left, middle and length of the scale of the heat, a line below the legend."""
        left, _ = self.legend_xy(0)
        middle = self.gap + (self.legend[1] + 1) * self.line + self.line // 2
        return left, middle, max(min(160, self._legend_width - 10 * self.letters), 1)


def fitted(photo: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) brought to a tile's size."""
    shrinks = size_hw[0] < photo.shape[0]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(photo, (size_hw[1], size_hw[0]), interpolation=way), np.uint8)
