"""Make the images and targets behind the golden numbers, from integers alone.

Pictures are sums of triangle waves and rectangles plus noise, in whole numbers, so they
are the same on every machine. Give the pixels to the network as they are where a case says
`native`; the photo case names a file and is resized (see README.md).
"""

import numpy as np
from weights import integers


def triangle(phase: np.ndarray, period: int) -> np.ndarray:
    """Triangle wave of the given integer period, values 0..255."""
    folded = np.abs(phase % (2 * period) - period)
    return folded * 255 // period


def image(name: str, height: int, width: int, salt: str = "") -> np.ndarray:
    """(height, width, 3) uint8 RGB."""
    knobs = integers(f"image/{name}", (64,), salt) + (1 << 23)  # 0 .. 2**24-1
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    picture = np.zeros((height, width, 3), np.int64)
    for channel in range(3):
        for wave in range(2):
            a, b, period, shift = (int(v) for v in knobs[(channel * 2 + wave) * 4 :][:4])
            phase = (a % 7 - 3) * x + (b % 7 - 3) * y + shift % 97
            picture[..., channel] += triangle(phase, 40 + period % 120)
    picture //= 2
    for box in range(6):
        top, left, tall, wide, colour = (int(v) for v in knobs[24 + 5 * box :][:5])
        top, left = top % (height - 20), left % (width - 20)
        bottom, right = top + 20 + tall % (height // 2), left + 20 + wide % (width // 2)
        inside = picture[top:bottom, left:right]
        inside //= 3
        inside += np.array([colour & 127, (colour >> 7) & 127, (colour >> 14) & 127])
    grain = integers(f"grain/{name}", (height, width, 3), salt) >> 19  # -16 .. 15
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def target(name: str, height: int, width: int, classes: int, count: int, salt: str = ""):
    """Labels (count,) int64, distinct and increasing, and masks (count, height, width) bool.

    The masks are disjoint; pixels of no mask are unlabelled.
    """
    knobs = integers(f"target/{name}", (count, 6), salt) + (1 << 23)
    labels, step = [], classes // max(count, 1)
    for index in range(count):
        labels.append(index * step + int(knobs[index, 0]) % step)
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    owner = np.full((height, width), -1)
    for index in range(count):
        cy, cx = int(knobs[index, 1]) % height, int(knobs[index, 2]) % width
        ry, rx = 15 + int(knobs[index, 3]) % (height // 3), 15 + int(knobs[index, 4]) % (width // 3)
        if index % 2:
            inside = (np.abs(y - cy) < ry) & (np.abs(x - cx) < rx)
        else:
            inside = (y - cy) ** 2 * rx * rx + (x - cx) ** 2 * ry * ry < (rx * ry) ** 2
        owner[inside] = index
    masks = owner[None] == np.arange(count)[:, None, None]
    return np.array(labels, np.int64).reshape(count), masks.reshape(count, height, width)


def labels(name: str, height: int, width: int, values: list[int], salt: str = "") -> np.ndarray:
    """(height, width) int64 label map drawn from `values`, in 4 x 4 blocks."""
    tall, wide = -(-height // 4), -(-width // 4)
    coarse = (integers(f"labels/{name}", (tall, wide), salt) + (1 << 23)) % len(values)
    fine = np.repeat(np.repeat(coarse, 4, axis=0), 4, axis=1)[:height, :width]
    return np.array(values, np.int64)[fine]
