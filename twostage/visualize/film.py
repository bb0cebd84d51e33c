"""Pictures of one size joined to a video."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from twostage.data.errors import DataError
from twostage.data.image_io import read_image

RATE = 25.0
"""Pictures a second where nobody says."""


def write_film(path: str | Path, pictures: Iterable[Path], fps: float = RATE) -> Path:
    """An .mp4 of these picture files in order, one of them in memory at a time; those that are missing are
    left out, those of another size than the first are brought to it. Whole or not at all.

    Raises:
        DataError: there is none, or OpenCV has no encoder for it.
    """
    path = Path(path)
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")  # the ending says which format
    writer, size_wh = None, (0, 0)
    try:
        for picture in pictures:
            if not picture.is_file():
                continue
            frame = cv2.cvtColor(
                np.ascontiguousarray(read_image(picture).permute(1, 2, 0)), cv2.COLOR_RGB2BGR
            )
            if writer is None:
                size_wh = (
                    frame.shape[1] // 2 * 2 or 2,
                    frame.shape[0] // 2 * 2 or 2,
                )  # encoders want even sides
                writer = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), fps or RATE, size_wh)
            if (frame.shape[1], frame.shape[0]) != size_wh:
                frame = cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA)
            writer.write(frame)
        if writer is None:
            raise DataError(f"{path}: there are no pictures to join.")
        if not writer.isOpened():
            raise DataError(f"{path}: this OpenCV cannot write .mp4 files; the pictures are there.")
        writer.release()
        part.replace(path)
    finally:
        if writer is not None:
            writer.release()
        part.unlink(missing_ok=True)
    return path
