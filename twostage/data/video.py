"""Frames of a video file, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import torch
from torch import Tensor

from twostage.data.errors import DataError
from twostage.data.photo_list import Shot


class EndOfVideo(DataError):
    """A frame behind the last one was asked for."""


class Video:
    """Reads a file forwards; frames that nobody asks for are passed over.

    fps: frames a second, 0 where the file does not say; frames: how many there are, None until the end is
    reached.

    Raises:
        DataError: no such file, or none that OpenCV reads as a video.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._next = Path(path), 0
        self.frames: int | None = None
        if not self.path.is_file():  # OpenCV also takes addresses and patterns of names
            raise DataError(f"{path}: there is no such video. Check the path.")
        self._capture = cv2.VideoCapture(str(self.path))
        if not self._capture.isOpened():
            raise DataError(f"{path}: not a video that OpenCV reads. Save it as .mp4 (H.264) or .avi.")
        self.fps = max(float(self._capture.get(cv2.CAP_PROP_FPS)), 0.0)
        self.told = max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        """Frames by the file's own head, which may be wrong; 0 where it does not say."""

    def shots(self, every: int = 1) -> Iterator[Shot]:
        """Every n-th frame from the first on: to the last one where the end was reached already, otherwise
        without an end, and reading one behind the last tells of that.
        """
        numbers = count(0, every) if self.frames is None else range(0, self.frames, every)
        return (Shot(f"{self.path.stem}_{frame:06d}", self.path, frame) for frame in numbers)

    def read(self, shot: Shot) -> Tensor:
        """A frame of `shots`, (3, H, W) uint8 RGB, upright.

        Raises:
            EndOfVideo: it has fewer frames.
            DataError: the frame lies before one that was read, or cannot be decoded.
        """
        frame = shot.frame or 0
        if frame < self._next:
            raise DataError(f"{self.path}: frame {frame} lies before {self._next}; a video is read forwards.")
        while self._next <= frame:
            if not self._capture.grab():
                self.frames = self._next
                raise EndOfVideo(f"{self.path}: has {self.frames} frames.")
            self._next += 1
        done, picture = self._capture.retrieve()
        if not done or picture is None:
            raise DataError(f"{self.path}: frame {frame} cannot be decoded.")
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()

    def close(self) -> None:
        """Lets go of the file."""
        self._capture.release()
