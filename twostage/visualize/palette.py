"""A colour for every class: one word has one colour in all pictures, two words of a list differ."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

VOID_COLOUR = (120, 120, 120)
"""The grey of pixels that no word claims; no class comes near it."""

_CANDIDATES = 48
_GOLDEN_RATIO = 0.6180339887498949
# Distance in CIELAB (D65, lightness halved) below which two colours over a photo are easily confused.
_CLEARLY_DIFFERENT = 32.0


def class_colours(names: Sequence[str]) -> NDArray[np.uint8]:
    """(K, 3) uint8 RGB, a function of the names alone.

    Each name proposes colours in an order of its own (from its hash) and gets the first that differs clearly
    from those of the names before it, or else the most different one: short lists are well apart, and a word
    keeps its colour from list to list unless an earlier word has taken it.
    """
    return _list_colours(tuple(names)).copy()


def picture_colours(names: Sequence[str], present: Sequence[int]) -> NDArray[np.uint8]:
    """`class_colours`, with clashes settled among the classes of one picture; `present`: positions, largest
    first.

    Long lists have colours that are close. Where two such classes meet in a picture, the smaller one takes
    another colour of its own; lists of up to some 25 words never need it.
    """
    colours = class_colours(names)
    own = [np.concatenate([colours[k][None], _candidates(names[k])]) for k in present]
    colours[list(present)] = _apart(own)
    return colours


@lru_cache(maxsize=32)
def _list_colours(names: tuple[str, ...]) -> NDArray[np.uint8]:
    return _apart([_candidates(name) for name in names])


def _apart(candidates: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """One of each row of candidates (M, 3), chosen in turn: the first that is clear of all before, or the
    farthest.
    """
    chosen = np.zeros((len(candidates), 3), np.uint8)
    taken = np.empty((len(candidates) + 1, 3), np.float32)
    taken[0] = _lab(np.array([VOID_COLOUR], np.uint8))[0]
    for position, colours in enumerate(candidates):
        lab = _lab(colours)
        distance = np.linalg.norm(lab[:, None] - taken[None, : position + 1], axis=-1).min(axis=1)
        clear = np.flatnonzero(distance >= _CLEARLY_DIFFERENT)
        pick = int(clear[0]) if len(clear) else int(distance.argmax())
        chosen[position], taken[position + 1] = colours[pick], lab[pick]
    return chosen


def _candidates(name: str) -> NDArray[np.uint8]:
    """(48, 3) uint8 lively colours in the order this name prefers them."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    hue = int.from_bytes(digest[:4], "big") / 2**32
    out = np.zeros((_CANDIDATES, 3), np.uint8)
    for step in range(_CANDIDATES):
        saturation = (0.95, 0.6, 0.8)[(digest[4] + step) % 3]
        value = (1.0, 0.75, 0.9, 0.55)[(digest[5] + step // 3) % 4]
        rgb = colorsys.hsv_to_rgb((hue + step * _GOLDEN_RATIO) % 1, saturation, value)
        out[step] = [round(255 * channel) for channel in rgb]
    return out


def _lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 3) uint8 RGB -> (N, 3) float32 CIELAB, lightness halved: a photo's own light and shade blur it."""
    pixels = (rgb.astype(np.float32) / 255)[None]
    lab = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[0], np.float32)
    return lab * np.array([0.5, 1, 1], np.float32)
