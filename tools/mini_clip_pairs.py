"""Pictures with captions for the miniature CLIP: crops, cut-outs and whole scenes of the embedded world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from twostage.data.shapes.classes import CLASSES, COLOURS, STUFF
from twostage.data.shapes.scene import Scene, render

CLIP_GREY = (123, 117, 104)
"""CLIP's mean colour, the fill of stage two's crops."""
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)


@dataclass(frozen=True)
class Pair:
    """picture: (size, size, 3) uint8; concepts: classes the caption names; colour: that of the only thing,
    or "";
    caption: text; told: the colour that the caption mentions, or "".
    """

    picture: np.ndarray
    concepts: frozenset[int]
    colour: str
    caption: str
    told: str


class PairStream:
    """An endless stream of pairs, a pure function of (seed, templates, size).

    Scenes stay in a pool and give several pairs each, because drawing one costs as much as training on one.
    """

    def __init__(
        self, seed: int, size: int, templates: Sequence[str], pool: int = 160, refresh: float = 0.08
    ) -> None:
        self._rng = np.random.default_rng([seed, 71])
        self._size, self._templates, self._refresh = size, list(templates), refresh
        self._pool = [render(self._rng) for _ in range(pool)]

    def batch(self, count: int) -> list[Pair]:
        """The next `count` pairs."""
        return [self._pair() for _ in range(count)]

    def _pair(self) -> Pair:
        rng = self._rng
        position = int(rng.integers(len(self._pool)))
        if rng.random() < self._refresh:
            self._pool[position] = render(rng)
        scene = self._pool[position]
        kind = rng.random()
        if kind < 0.45:
            return self._cut_out(scene)
        if kind < 0.7 and scene.instances:
            return self._in_context(scene)
        if kind < 0.85:
            return self._patch(scene)
        return self._view(scene)

    def _cut_out(self, scene: Scene) -> Pair:
        """One class or thing on plain ground, as in catalogues and clip art."""
        rng = self._rng
        if scene.instances and rng.random() < 0.55:
            thing = scene.instances[int(rng.integers(len(scene.instances)))]
            mask, index, colour = thing.mask, thing.class_index, thing.colour
        else:
            present = scene.classes
            index = present[int(rng.integers(len(present)))]
            mask, colour = scene.labels == index, ""
        mask = _worn(rng, mask)
        ground = CLIP_GREY if rng.random() < 0.7 else tuple(int(v) for v in rng.integers(0, 256, 3))
        x0, y0, x1, y1 = _box(mask, rng.uniform(0, 0.08))
        part = mask[y0:y1, x0:x1, None]
        picture = np.where(part, scene.image[y0:y1, x0:x1], np.array(ground, np.uint8))
        return self._finish(picture, (0, 0, x1 - x0, y1 - y0), frozenset([index]), colour)

    def _in_context(self, scene: Scene) -> Pair:
        """A thing with some of its surroundings."""
        rng = self._rng
        thing = scene.instances[int(rng.integers(len(scene.instances)))]
        box = _box(thing.mask, rng.uniform(0.0, 0.35))
        return self._finish(scene.image, box, frozenset([thing.class_index]), thing.colour)

    def _patch(self, scene: Scene) -> Pair:
        """A piece of ground without things."""
        rng = self._rng
        side = int(rng.integers(24, 90))
        height, width = scene.labels.shape
        best, best_share = (0, 0, side, side), -1.0
        for _ in range(4):
            y, x = int(rng.integers(max(1, height - side))), int(rng.integers(max(1, width - side)))
            part = scene.labels[y : y + side, x : x + side]
            share = np.bincount(part.ravel(), minlength=len(CLASSES))[: len(STUFF)].max() / part.size
            if share > best_share:
                best, best_share = (x, y, x + side, y + side), share
        part = scene.labels[best[1] : best[3], best[0] : best[2]]
        index = int(np.bincount(part.ravel(), minlength=len(CLASSES)).argmax())
        return self._finish(scene.image, best, frozenset([index]), "")

    def _view(self, scene: Scene) -> Pair:
        """The whole scene with everything named."""
        height, width = scene.labels.shape
        counts = np.bincount(scene.labels.ravel(), minlength=len(CLASSES))
        named = frozenset(np.flatnonzero(counts > 0.03 * scene.labels.size).tolist())
        return self._finish(scene.image, (0, 0, width, height), named, "")

    def _finish(
        self, picture: np.ndarray, box: tuple[int, int, int, int], concepts: frozenset[int], colour: str
    ) -> Pair:
        rng = self._rng
        x0, y0, x1, y1 = box
        crop = picture[y0:y1, x0:x1]
        how = INTERPOLATIONS[int(rng.integers(len(INTERPOLATIONS)))]
        crop = cv2.resize(crop, (self._size, self._size), interpolation=how)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        told = colour if colour and len(concepts) == 1 and rng.random() < 0.25 else ""
        names = [CLASSES[index] for index in rng.permutation(sorted(concepts))]
        if len(names) == 1:
            template = self._templates[int(rng.integers(len(self._templates)))]
            caption = template.format(f"{told} {names[0]}".strip())
        else:
            caption = "a " + " and a ".join(names)
        return Pair(np.ascontiguousarray(crop), concepts, colour, caption, told)


def evaluation_crops(seed: int, scenes: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Masked crops as stage two makes them, from true class masks: (N, size, size, 3) uint8 and (N,)
    classes.
    """
    pictures, classes = [], []
    for position in range(scenes):
        scene = render(np.random.default_rng([seed, position]))
        for index in scene.classes:
            mask = scene.labels == index
            x0, y0, x1, y1 = _box(mask, 0.0)
            cut = np.where(mask[..., None], scene.image, np.array(CLIP_GREY, np.uint8))[y0:y1, x0:x1]
            pictures.append(cv2.resize(cut, (size, size), interpolation=cv2.INTER_CUBIC))
            classes.append(index)
    return np.stack(pictures), np.array(classes)


def colour_names() -> tuple[str, ...]:
    """The colours a caption may mention."""
    return tuple(COLOURS)


def _box(mask: np.ndarray, margin: float) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 around the mask, end-exclusive, widened by `margin` of its sides and kept inside the
    picture.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, mask.shape[1], mask.shape[0]
    grow_y, grow_x = int(margin * len(rows)), int(margin * len(columns))
    return (
        max(0, int(columns[0]) - grow_x),
        max(0, int(rows[0]) - grow_y),
        min(mask.shape[1], int(columns[-1]) + 1 + grow_x),
        min(mask.shape[0], int(rows[-1]) + 1 + grow_y),
    )


def _worn(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask as a network would draw it: edges off by a pixel or three, now and then a part missing."""
    choice = rng.random()
    if choice < 0.45:
        kernel = np.ones((int(rng.integers(2, 5)),) * 2, np.uint8)
        change = cv2.dilate if choice < 0.3 else cv2.erode
        mask = change(mask.astype(np.uint8), kernel) > 0 if mask.sum() > 150 else mask
    if rng.random() < 0.15:
        rows, columns = np.nonzero(mask)
        if len(rows):
            angle = rng.uniform(0, 2 * np.pi)
            y, x = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]]
            along = np.cos(angle) * (y - rows.mean()) + np.sin(angle) * (x - columns.mean())
            spread = np.hypot(rows.std(), columns.std())
            kept = mask & (along < rng.uniform(0.1, 0.8) * spread)
            mask = kept if kept.sum() > 60 else mask
    return mask
