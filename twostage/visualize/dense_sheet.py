"""One contact sheet of several dense readouts of a photo: their labels, how sure they are, and where each of
the leading classes lies.

H x W pixels of the photo, K classes, h x w places of a dense map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.visualize.dense_layout import Layout, fitted
from twostage.visualize.legend import INK, PAPER, Entry, key_of
from twostage.visualize.lettering import shorten, text_width, write
from twostage.visualize.overlay import Picture, checked_labels, pixels, shown_names, tint
from twostage.vocabulary import Vocabulary

_HEAT = cv2.COLORMAP_INFERNO
_HEAT_SHARE = 0.75


@dataclass(frozen=True)
class DenseView:
    """What one readout says. title: stands above its row; logits: (K, h, w) of any resolution, whose softmax
    is shown; labels: (H, W) integers, what the whole system makes of it, position in the vocabulary or -1.
    """

    title: str
    logits: Tensor
    labels: Tensor


def dense_sheet(
    image: Tensor,
    views: Sequence[DenseView],
    vocabulary: Vocabulary | Sequence[str],
    top: int = 3,
    alpha: float = 0.6,
) -> Picture:
    """Photo and legend above, then a row for each view, all tiles of one size.

    image: (3, H, W) uint8 RGB; top: how many classes get a map of their own, those with the largest area
    over all views. A row holds the system's labels, the labels of the dense map alone, the probability of
    its first class, and these maps; colours and columns mean the same in every row.

    Raises:
        LabelError: no view, or one that does not fit the image or the vocabulary.
    """
    names = shown_names(vocabulary)
    photo = pixels(image)
    _check(views, len(names))
    layout = Layout.of((photo.shape[0], photo.shape[1]), len(views), 3 + min(top, len(names)))
    small = fitted(photo, layout.tile_hw)
    chances = [_chances(view.logits, layout.tile_hw) for view in views]
    whole = [_nearest(checked_labels(view.labels, image, len(names)), layout.tile_hw) for view in views]
    alone = [np.asarray(one.argmax(axis=0), np.int32) for one in chances]
    leading = _leading([*whole, *alone], len(names))[:top]
    colours, entries = key_of([*whole, *alone], names)
    layout = layout.with_legend(len(entries), max(text_width(e.name, layout.letters) for e in entries))
    sheet = Image.new("RGB", (layout.size_hw[1], layout.size_hw[0]), PAPER)
    _place(sheet, layout.photo_xy, small)
    _legend(sheet, layout, entries)
    for row, view in enumerate(views):
        _text(sheet, layout.title_xy(row), view.title, layout.width, layout.letters + 3)
        found = chances[row]
        tiles = [
            ("final labels", tint(small, whole[row], colours, alpha)),
            ("dense labels", tint(small, alone[row], colours, alpha)),
            ("how sure the map is", _heated(small, found.max(axis=0))),
            *((names[k], _heated(small, found[k])) for k in leading),
        ]
        for column, (caption, tile) in enumerate(tiles):
            _place(sheet, layout.tile_xy(row, column), tile)
            _text(sheet, layout.caption_xy(row, column), caption, layout.caption_width, layout.letters)
    return np.asarray(sheet)


def _check(views: Sequence[DenseView], count: int) -> None:
    if not views:
        raise LabelError("Dense sheet: there is no readout to show; give at least one view.")
    for view in views:
        if view.logits.ndim != 3 or len(view.logits) != count:
            raise LabelError(
                f"Dense sheet: {view.title} should have ({count}, h, w) logits, a map for each name, got "
                f"{tuple(view.logits.shape)}."
            )


def _chances(logits: Tensor, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(K, h, w) logits -> (K, *size_hw) probabilities; resized first, as an ensemble does."""
    full = torch.nn.functional.interpolate(
        logits.detach().float().cpu()[None], size=size_hw, mode="bilinear", align_corners=False
    )
    return full[0].softmax(dim=0).numpy()


def _nearest(labels: NDArray[np.int32], size_hw: tuple[int, int]) -> NDArray[np.int32]:
    small = cv2.resize(labels, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_NEAREST)
    return np.asarray(small, np.int32)


def _leading(maps: Sequence[NDArray[np.int32]], count: int) -> list[int]:
    """All classes by their area over all maps, largest first."""
    areas = np.sum([np.bincount(one.ravel() + 1, minlength=count + 1)[1:] for one in maps], axis=0)
    return sorted(range(count), key=lambda k: (-int(areas[k]), k))


def heat_colours(values: NDArray[np.float32]) -> Picture:
    """Values in [0, 1] of any shape (H, W) -> (H, W, 3) uint8 RGB, dark for 0, bright for 1."""
    levels = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, _HEAT), cv2.COLOR_BGR2RGB), np.uint8)


def _heated(photo: Picture, values: NDArray[np.float32]) -> Picture:
    """The photo in grey below the values as heat."""
    grey = photo.astype(np.float32).mean(axis=-1, keepdims=True)
    mixed = (1 - _HEAT_SHARE) * grey + _HEAT_SHARE * heat_colours(values)
    return np.asarray(np.clip(np.rint(mixed), 0, 255), np.uint8)


def _place(sheet: Image.Image, at_xy: tuple[int, int], picture: Picture) -> None:
    sheet.paste(Image.fromarray(picture), at_xy)


def _text(sheet: Image.Image, at_xy: tuple[int, int], text: str, width: int, size: int) -> None:
    write(sheet, at_xy, shorten(text, width, size), size, INK)


def _legend(sheet: Image.Image, layout: Layout, entries: Sequence[Entry]) -> None:
    """Swatch and name of every class in the sheet, and the scale of the heat."""
    swatch = layout.letters
    for number, entry in enumerate(entries[: layout.legend_shown]):
        left, middle = layout.legend_xy(number)
        box = np.full((swatch, swatch, 3), entry.colour, np.uint8)
        _place(sheet, (left, middle - swatch // 2), box)
        _text(sheet, (left + round(1.5 * swatch), middle), entry.name, layout.name_width, layout.letters)
    hidden = len(entries) - layout.legend_shown
    if hidden:
        left, middle = layout.legend_xy(layout.legend_shown)
        _text(sheet, (left, middle), f"and {hidden} more", layout.name_width, layout.letters)
    left, middle, wide = layout.scale
    ramp = heat_colours(np.tile(np.linspace(0, 1, wide, dtype=np.float32), (swatch, 1)))
    zero = text_width("0 ", layout.letters)
    _text(sheet, (left, middle), "0", zero, layout.letters)
    _place(sheet, (left + zero, middle - swatch // 2), ramp)
    after = left + zero + wide + swatch // 2
    _text(sheet, (after, middle), "1 probability", layout.width - after, layout.letters)
