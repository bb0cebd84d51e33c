"""The six stuff textures: (height, width, 3) uint8 pictures without objects."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator
Picture = np.ndarray


def smooth_noise(rng: Rng, height: int, width: int, cell: float) -> np.ndarray:
    """(height, width) float32 noise of mean about 0 and spread about 1, features of about `cell` pixels."""
    rows, columns = max(2, round(height / cell) + 2), max(2, round(width / cell) + 2)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _tinted(value: np.ndarray, colour: tuple[float, float, float], rng: Rng, spread: float = 14.0) -> Picture:
    """A grey relief around zero, in one colour that varies a little from scene to scene."""
    base = np.array(colour, np.float32) + rng.normal(0, spread, 3).astype(np.float32)
    picture: Picture = base + value[..., None]
    return picture.clip(0, 255).astype(np.uint8)


def grass(rng: Rng, height: int, width: int) -> Picture:
    """Upright blades."""
    noise = rng.standard_normal((height, width), dtype=np.float32)
    blades = cv2.blur(noise, (1, int(rng.integers(5, 11)))) * 62 + smooth_noise(rng, height, width, 24) * 9
    return _tinted(blades, (88, 142, 58), rng)


def sand(rng: Rng, height: int, width: int) -> Picture:
    """Fine grain over faint dunes."""
    grain = rng.standard_normal((height, width), dtype=np.float32) * 11
    return _tinted(grain + smooth_noise(rng, height, width, 36) * 9, (212, 184, 132), rng)


def water(rng: Rng, height: int, width: int) -> Picture:
    """Long waves, roughly level."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    period, tilt = rng.uniform(8, 15), rng.uniform(-0.15, 0.15)
    bend = smooth_noise(rng, height, width, 22) * 2.4
    waves = np.sin((y + tilt * x + bend) * (2 * np.pi / period)) * 20
    return _tinted(waves + smooth_noise(rng, height, width, 9) * 6, (62, 118, 178), rng)


def brick(rng: Rng, height: int, width: int) -> Picture:
    """Courses of bricks in running bond, with mortar between."""
    tall, wide = int(rng.integers(9, 15)), int(rng.integers(20, 31))
    y, x = np.mgrid[0:height, 0:width]
    y, x = y + int(rng.integers(tall)), x + int(rng.integers(wide))
    course = y // tall
    x = x + (course % 2) * (wide // 2)
    tone = rng.normal(0, 13, (64, 64)).astype(np.float32)[course % 64, (x // wide) % 64]
    picture = _tinted(tone + smooth_noise(rng, height, width, 3) * 5, (166, 78, 60), rng)
    mortar = (y % tall < 2) | (x % wide < 2)
    picture[mortar] = np.clip(np.array([196, 190, 182]) + rng.normal(0, 8), 0, 255).astype(np.uint8)
    return picture


def snow(rng: Rng, height: int, width: int) -> Picture:
    """Soft bluish drifts."""
    drifts = smooth_noise(rng, height, width, 28) * 7 + smooth_noise(rng, height, width, 10) * 3
    picture = _tinted(drifts, (228, 234, 243), rng, spread=6)
    sparkle = rng.random((height, width)) > 0.996
    picture[sparkle] = 255
    return picture


def gravel(rng: Rng, height: int, width: int) -> Picture:
    """Pebbles of many greys, edge to edge."""
    picture = np.full((height, width, 3), int(rng.integers(45, 70)), np.uint8)
    step = float(rng.uniform(6.5, 10))
    centres = np.mgrid[0 : height + step : step, 0 : width + step : step].reshape(2, -1).T
    centres = centres + rng.normal(0, step * 0.22, centres.shape)
    radii = rng.uniform(0.42, 0.66, (len(centres), 2)) * step
    greys = rng.normal(138, 32, len(centres))
    warm = rng.normal(0, 7, len(centres))
    for (cy, cx), (ry, rx), grey, tint, angle in zip(
        centres, radii, greys, warm, rng.uniform(0, 180, len(centres)), strict=True
    ):
        colour = tuple(float(np.clip(v, 0, 255)) for v in (grey + tint, grey, grey - tint))
        cv2.ellipse(picture, (round(cx), round(cy)), (round(rx), round(ry)), angle, 0, 360, colour, -1)
    return picture


TEXTURES: dict[str, Callable[[Rng, int, int], Picture]] = {
    "grass": grass,
    "sand": sand,
    "water": water,
    "brick": brick,
    "snow": snow,
    "gravel": gravel,
}
