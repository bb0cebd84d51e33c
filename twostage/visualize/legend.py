"""The legend of an overlay: swatch, name and share of each class in the picture, beside or below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from twostage.visualize.lettering import shorten, text_width, write
from twostage.visualize.palette import VOID_COLOUR, picture_colours

PAPER = (255, 255, 255)
INK = (20, 20, 20)
MOST_ENTRIES = 48
_WIDEST_NAME_EM = 20


@dataclass(frozen=True)
class Entry:
    """One line of the legend; share in percent of the picture."""

    name: str
    colour: tuple[int, int, int]
    share: float

    @property
    def amount(self) -> str:
        """The share as it is written."""
        return "<0.1 %" if 0 < self.share < 0.1 else f"{self.share:.1f} %"


def key_of(
    labels: Sequence[NDArray[np.integer]], names: Sequence[str]
) -> tuple[NDArray[np.uint8], list[Entry]]:
    """Colours (K, 3) uint8 for these label maps, and the classes present, largest first, "no class" last.

    With several maps (truth and prediction) a share is the one in the last map.
    """
    counts = [np.bincount(one.ravel() + 1, minlength=len(names) + 1) for one in labels]
    last, total = counts[-1], max(labels[-1].size, 1)
    everywhere = np.sum(counts, axis=0)
    present = sorted((np.flatnonzero(everywhere[1:])).tolist(), key=lambda k: (-last[k + 1], k))
    colours = picture_colours(names, present)
    entries = [Entry(names[k], _rgb(colours[k]), 100 * int(last[k + 1]) / total) for k in present]
    if everywhere[0]:
        entries.append(Entry("(no class)", VOID_COLOUR, 100 * int(last[0]) / total))
    return colours, entries


def letter_size(size_hw: tuple[int, int]) -> int:
    """Height of the letters in pixels that suits a picture of this size."""
    return min(max(round(max(size_hw) * 0.026), 14), 40)


def with_legend(
    picture: NDArray[np.uint8], entries: Sequence[Entry], size: int | None = None
) -> NDArray[np.uint8]:
    """The picture (H, W, 3) with its legend on white paper: to the right of upright ones, else below.

    size: height of the letters in pixels, by default what suits the picture.
    """
    if not entries:
        return picture
    height, width = picture.shape[:2]
    size = size or letter_size((height, width))
    shown = _at_most(entries, MOST_ENTRIES)
    beside = width <= 1.2 * height and len(shown) * _row_height(size) + size <= height
    if beside:
        legend = _columns(shown, size, 1)
    else:
        legend = _columns(shown, size, max((width - size) // _column_width(shown, size), 1))
    return join([picture, legend], across=beside)


def join(pictures: Sequence[NDArray[np.uint8]], across: bool, gap: int = 0) -> NDArray[np.uint8]:
    """Pictures in a row (or a column) on white paper, flush to the top and left."""
    axis = 1 if across else 0
    length = sum(p.shape[axis] for p in pictures) + gap * (len(pictures) - 1)
    breadth = max(p.shape[1 - axis] for p in pictures)
    out = np.full((breadth, length, 3) if across else (length, breadth, 3), PAPER, np.uint8)
    at = 0
    for picture in pictures:
        height, width = picture.shape[:2]
        y, x = (0, at) if across else (at, 0)
        out[y : y + height, x : x + width] = picture
        at += picture.shape[axis] + gap
    return out


def _at_most(entries: Sequence[Entry], count: int) -> list[Entry]:
    if len(entries) <= count:
        return list(entries)
    rest = entries[count - 1 :]
    more = Entry(f"and {len(rest)} more", PAPER, sum(entry.share for entry in rest))
    return [*entries[: count - 1], more]


def _row_height(size: int) -> int:
    return round(size * 1.5)


def _name_width(entries: Sequence[Entry], size: int) -> int:
    widest = max(text_width(shorten(entry.name, _WIDEST_NAME_EM * size, size), size) for entry in entries)
    return min(widest, _WIDEST_NAME_EM * size)


def _column_width(entries: Sequence[Entry], size: int) -> int:
    return round(_name_width(entries, size) + text_width("100.0 %", size) + 3.2 * size)


def _columns(entries: Sequence[Entry], size: int, columns: int) -> NDArray[np.uint8]:
    """The legend alone, filled column by column."""
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)
    column, row = _column_width(entries, size), _row_height(size)
    paper = Image.new("RGB", (columns * column + size, rows * row + size), PAPER)
    draw = ImageDraw.Draw(paper)
    names = _name_width(entries, size)
    for number, entry in enumerate(entries):
        left, top = size // 2 + number // rows * column, size // 2 + number % rows * row
        middle = top + row // 2
        if entry.colour != PAPER:
            box = (left, middle - size // 2, left + round(1.2 * size), middle + size // 2)
            draw.rectangle(box, fill=entry.colour, outline=INK)
        write(paper, (left + round(1.6 * size), middle), shorten(entry.name, names, size), size, INK)
        amount_left = left + round(2.2 * size) + names + text_width("100.0 %", size)
        write(paper, (amount_left - text_width(entry.amount, size), middle), entry.amount, size, INK)
    return np.asarray(paper)


def _rgb(colour: NDArray[np.uint8]) -> tuple[int, int, int]:
    red, green, blue = (int(channel) for channel in colour)
    return red, green, blue
