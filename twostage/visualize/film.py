"""Label maps of a video's frames as pictures of one size and one set of colours, joined to a film."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import DataError
from twostage.types import VOID
from twostage.visualize.legend import PAPER, Entry, with_legend
from twostage.visualize.overlay import Picture, at_viewing_size, checked_labels, pixels, shown_names, tint
from twostage.visualize.palette import class_colours
from twostage.vocabulary import Vocabulary

RATE = 25.0
"""Pictures a second where nobody says."""
MOST_NAMES = 24
"""Longer vocabularies have no legend in a film: it would have to list them all."""


def film_picture(
    image: Tensor, labels: Tensor | NDArray[np.integer], vocabulary: Vocabulary, alpha: float = 0.55
) -> Picture:
    """As `overlay`, but colours, order and size of the legend are the same whatever the frame shows.

    image: (3, H, W) uint8 RGB; labels: (H, W) integers, position in the vocabulary or -1.

    Raises:
        LabelError: labels of another size than the image, or outside the vocabulary.
    """
    names = shown_names(vocabulary)
    label_map = checked_labels(labels, image, len(names))
    colours = class_colours(names)
    picture = tint(at_viewing_size(pixels(image)), at_viewing_size(label_map), colours, alpha)
    if len(names) > MOST_NAMES:
        return picture
    shares = 100 * np.bincount(label_map.ravel() - VOID, minlength=len(names) + 1)[1:] / label_map.size
    entries = [
        Entry(name, (int(red), int(green), int(blue)), float(share))
        for name, (red, green, blue), share in zip(names, colours, shares, strict=True)
    ]
    return with_legend(picture, entries)


def write_film(path: str | Path, pictures: Iterable[Picture], fps: float) -> Path:
    """An .mp4 of pictures of one size, one of them in memory at a time; whole or not at all.

    fps: 0 takes RATE. Sides of odd length get a white line more, which encoders want.

    Raises:
        DataError: there is none, or OpenCV has no encoder for it.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # the ending says which format
    writer = None
    try:
        for picture in pictures:
            even = np.pad(
                picture,
                ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)),
                constant_values=PAPER[0],
            )
            if writer is None:
                size_wh = (even.shape[1], even.shape[0])
                writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), fps or RATE, size_wh)
            writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        if writer is None:
            raise DataError(f"{path}: there are no frames to join.")
        if not writer.isOpened():
            raise DataError(
                f"{path}: this OpenCV writes no .mp4 files. The pictures of the frames are there."
            )
        writer.release()
        part.replace(path)
    finally:
        if writer is not None:
            writer.release()
        part.unlink(missing_ok=True)
    return path
