"""Several pictures on one sheet: truth beside prediction, and the masks that stage one proposes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.types import Proposals
from twostage.visualize.legend import INK, PAPER, join, key_of, letter_size, with_legend
from twostage.visualize.lettering import shorten, write
from twostage.visualize.overlay import (
    Picture,
    at_viewing_size,
    borders,
    checked_labels,
    pixels,
    shown_names,
    tint,
)
from twostage.vocabulary import Vocabulary

_TILE = 256
_CONTOUR = (255, 230, 0)


def side_by_side(
    image: Tensor,
    gt: Tensor | NDArray[np.integer] | None,
    pred: Tensor | NDArray[np.integer],
    vocabulary: Vocabulary | Sequence[str],
    alpha: float = 0.7,
) -> Picture:
    """Photo, truth (left out when None) and prediction with one legend, whose shares are the prediction's.

    image: (3, H, W) uint8 RGB; gt, pred: (H, W) integers, position in the vocabulary or -1. Wide photos are
    stacked, others stand in a row.

    Raises:
        LabelError: label maps of another size than the image, or outside the vocabulary.
    """
    names = shown_names(vocabulary)
    maps = {} if gt is None else {"truth": checked_labels(gt, image, len(names))}
    maps["prediction"] = checked_labels(pred, image, len(names))
    photo = at_viewing_size(pixels(image))
    colours, entries = key_of(list(maps.values()), names)
    size = round(1.3 * letter_size(photo.shape[:2]))
    sheets = [_titled(photo, "photo", size)]
    sheets += [
        _titled(tint(photo, at_viewing_size(one), colours, alpha), title, size) for title, one in maps.items()
    ]
    sheet = join(sheets, across=photo.shape[1] <= 2 * photo.shape[0], gap=size // 2)
    return with_legend(sheet, entries, size)


def proposal_mosaic(image: Tensor, proposals: Proposals, count: int = 11) -> Picture:
    """The photo and its `count` best-scored proposals, each bright on the darkened photo, outlined at 0.5.

    image: (3, H, W) uint8 RGB; proposals: masks of the image's size, soft or not. Titles give the rank, the
    row of the proposal, its score and its share of the picture.

    Raises:
        LabelError: masks of another size than the image.
    """
    photo = pixels(image)
    if len(proposals) and proposals.size_hw != photo.shape[:2]:
        raise LabelError(f"Picture: the image is {photo.shape[:2]} and its proposals {proposals.size_hw}.")
    size_hw = _tile_size(photo.shape[:2])
    small = _resized(photo, size_hw)
    tiles = [_titled(small, f"photo, {len(proposals)} masks", 13)]
    best = torch.argsort(proposals.scores.float(), descending=True, stable=True)[:count].tolist()
    for n in best:
        mask = proposals.masks[n].float().cpu().numpy()
        title = f"#{n}: {float(proposals.scores[n]):.2f}, {100 * float((mask > 0.5).mean()):.1f} %"
        tiles.append(_titled(_lit(small, _resized(mask, size_hw)), title, 13))
    columns = min(len(tiles), 4 if size_hw[1] >= size_hw[0] else 6)
    rows = [join(tiles[at : at + columns], across=True, gap=6) for at in range(0, len(tiles), columns)]
    return join(rows, across=False, gap=6)


def _lit(photo: Picture, mask: NDArray[np.float32]) -> Picture:
    """The photo at full brightness where the mask is 1, at a quarter where it is 0, with an outline."""
    lit = photo * (0.25 + 0.75 * mask[..., None])
    lit[borders((mask > 0.5).astype(np.int32), 2)] = _CONTOUR
    return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _tile_size(size_hw: tuple[int, ...]) -> tuple[int, int]:
    height, width = size_hw
    ratio = _TILE / max(height, width)
    return max(round(height * ratio), 1), max(round(width * ratio), 1)


def _resized(array: NDArray, size_hw: tuple[int, int]) -> NDArray:
    shrinks = size_hw[0] < array.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(array, (size_hw[1], size_hw[0]), interpolation=interpolation)


def _titled(picture: Picture, title: str, size: int) -> Picture:
    """The picture below a line of text."""
    strip = Image.new("RGB", (picture.shape[1], round(1.5 * size)), PAPER)
    write(strip, (2, round(0.75 * size)), shorten(title, picture.shape[1] - 4, size), size, INK)
    return join([np.asarray(strip), picture], across=False)
