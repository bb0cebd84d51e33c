"""One scene: a ground of one to three materials, things on it, light over it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from twostage.data.shapes.classes import CLASSES, STUFF, THINGS
from twostage.data.shapes.textures import TEXTURES, smooth_noise
from twostage.data.shapes.things import CANVAS, draw

Rng = np.random.Generator
SIZES = (128, 144, 160)
"""Possible heights and widths of a scene in pixels."""
MIN_VISIBLE = 0.45
"""A thing of which less than this share would stay visible behind later ones is not covered further."""


@dataclass(frozen=True)
class Instance:
    """A visible thing: index into CLASSES, main colour, (H, W) bool mask of the pixels that show it."""

    class_index: int
    colour: str
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """image: (H, W, 3) uint8 RGB; labels: (H, W) int32 into CLASSES, no pixel without; instances: things."""

    image: np.ndarray
    labels: np.ndarray
    instances: tuple[Instance, ...]

    @property
    def classes(self) -> list[int]:
        """The classes present, increasing."""
        return [int(label) for label in np.unique(self.labels)]

    def caption(self) -> str:
        """What a person might write below the picture: the things, then the ground with most pixels."""
        things = " and ".join(f"a {thing.colour} {CLASSES[thing.class_index]}" for thing in self.instances)
        counts = np.bincount(self.labels.ravel(), minlength=len(CLASSES))[: len(STUFF)]
        ground = STUFF[int(counts.argmax())]
        return f"{things} on {ground}" if things else ground


def _ground(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels of one to three materials, in warped bands or patches."""
    count = int(rng.choice([1, 2, 3], p=[0.25, 0.5, 0.25]))
    chosen = rng.permutation(len(STUFF))[:count]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    warp = smooth_noise(rng, height, width, 40) * 7
    if rng.random() < 0.5:
        angle = rng.choice([0.0, 0.0, np.pi / 2]) + rng.normal(0, 0.25)
        along = np.cos(angle) * (y / height - 0.5) + np.sin(angle) * (x / width - 0.5) + warp / 160
        cuts = np.sort(rng.uniform(-0.3, 0.3, count - 1))
        if count == 3 and cuts[1] - cuts[0] < 0.25:
            cuts = np.array([cuts.mean() - 0.18, cuts.mean() + 0.18])
        owner = np.searchsorted(cuts, along)
    else:
        points = rng.uniform(0.1, 0.9, (count, 2)) * (height, width)
        distance = [np.hypot(y - py + warp, x - px - warp) for py, px in points]
        owner = np.argmin(distance, axis=0)
    picture = np.empty((height, width, 3), np.uint8)
    labels = np.empty((height, width), np.int32)
    for position, material in enumerate(chosen):
        where = owner == position
        picture[where] = TEXTURES[STUFF[material]](rng, height, width)[where]
        labels[where] = material
    return picture, labels


def _placed(rng: Rng, name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray, str]:
    """A thing turned, sized and moved into place: (H, W, 3) uint8, its mask (H, W) bool, colour name."""
    drawing = draw(name, rng)
    size = rng.uniform(40, 80)
    angle, scale = rng.uniform(-drawing.turn, drawing.turn), size / CANVAS
    cosine, sine = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cy, cx = rng.uniform(size * 0.4, height - size * 0.4), rng.uniform(size * 0.4, width - size * 0.4)
    half = CANVAS / 2
    matrix = np.array([[mirror * cosine, -sine, 0.0], [mirror * sine, cosine, 0.0]])
    matrix[:, 2] = (cx, cy) - matrix[:, :2] @ (half, half)
    picture = cv2.warpAffine(drawing.picture, matrix, (width, height), flags=cv2.INTER_LINEAR)
    light = 1.0 + 0.12 * (np.mgrid[0:height, 0:width][0] - cy)[..., None] / size * rng.choice([-1, 1])
    picture = np.clip(picture * light, 0, 255).astype(np.uint8)
    alpha = cv2.warpAffine(drawing.alpha, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return picture, alpha > 127, drawing.colour


def _light(rng: Rng, picture: np.ndarray) -> np.ndarray:
    """A gradient of light, a tint and sensor noise over the whole picture."""
    height, width = picture.shape[:2]
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    gain = rng.uniform(0.78, 1.15) * (1 + rng.uniform(0, 0.35) * (np.cos(angle) * x + np.sin(angle) * y))
    tint = 1 + rng.normal(0, 0.03, 3).astype(np.float32)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(1, 6)
    lit: np.ndarray = picture * gain[..., None].astype(np.float32) * tint + noise
    return lit.clip(0, 255).astype(np.uint8)


def render(rng: Rng, things: int | None = None) -> Scene:
    """Draw one scene; everything about it comes from `rng`.

    things: how many to place; None draws one to four.
    """
    height, width = (int(side) for side in rng.choice(SIZES, 2))
    picture, labels = _ground(rng, height, width)
    placed: list[Instance] = []
    for _ in range(int(rng.integers(1, 5)) if things is None else things):
        index = int(rng.integers(len(THINGS)))
        for _attempt in range(6):
            look, mask, colour = _placed(rng, THINGS[index], height, width)
            if all((old.mask & ~mask).sum() >= MIN_VISIBLE * old.mask.sum() for old in placed):
                break
        else:
            continue
        placed = [Instance(old.class_index, old.colour, old.mask & ~mask) for old in placed]
        placed.append(Instance(len(STUFF) + index, colour, mask))
        picture[mask] = look[mask]
        labels[mask] = len(STUFF) + index
    return Scene(_light(rng, picture), labels, tuple(placed))
