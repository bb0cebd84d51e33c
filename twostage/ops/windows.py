"""Sliding windows: which ones cover an image, and how their overlapping maps become one.

Shapes: C channels, H x W image, h x w window, all in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twostage.errors import TwostageError

Box = tuple[int, int, int, int]
"""top, left, bottom, right in pixels, end-exclusive."""


def window_boxes(
    size_hw: tuple[int, int], window_hw: tuple[int, int], stride_hw: tuple[int, int]
) -> list[Box]:
    """The windows in reading order. They cover every pixel; the last of a row or column is moved inward to
    fit.

    An image smaller than the window gets one window of its own size.

    Raises:
        TwostageError: a size or stride below one, or a stride larger than the window, which would leave gaps.
    """
    for name, values in (("size", size_hw), ("window", window_hw), ("stride", stride_hw)):
        if min(values) < 1:
            raise TwostageError(f"window_boxes: {name} must be at least 1 pixel, got {values}.")
    if stride_hw[0] > window_hw[0] or stride_hw[1] > window_hw[1]:
        raise TwostageError(f"window_boxes: stride {stride_hw} leaves gaps between windows of {window_hw}.")
    rows = _spans(size_hw[0], window_hw[0], stride_hw[0])
    columns = _spans(size_hw[1], window_hw[1], stride_hw[1])
    return [(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def _spans(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    window = min(window, size)
    count = max(size - window + stride - 1, 0) // stride + 1
    ends = [min(index * stride + window, size) for index in range(count)]
    return [(end - window, end) for end in ends]


class Stitcher:
    """Averages overlapping windows: every pixel's weights add up to one, however many windows see it."""

    def __init__(self, channels: int, size_hw: tuple[int, int], device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(channels, *size_hw, device=device)
        self._hits = torch.zeros(size_hw, device=device)

    def add(self, box: Box, values: Tensor) -> None:
        """values: (C, h, w) float, the map of one window."""
        top, left, bottom, right = box
        self._sum[:, top:bottom, left:right] += values
        self._hits[top:bottom, left:right] += 1

    def result(self) -> Tensor:
        """(C, H, W) float32.

        Raises:
            TwostageError: some pixel was in no window.
        """
        if not bool(self._hits.all()):
            raise TwostageError("Stitcher: some pixels were in no window.")
        return self._sum / self._hits
