"""Views of a photo: at which size it is looked at, through which window, mirrored or not.

Several sizes, mirror images and sliding windows are the same thing: a list of views. Each goes through the
whole flow, and the class maps of all are averaged where they belong on the photo (test_time.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from twostage.data.transforms import resize_for_test
from twostage.errors import TwostageError
from twostage.ops.windows import Box, window_boxes


@dataclass(frozen=True)
class TestSize:
    """Shorter edge of a photo when it is looked at, and the longest longer edge; 0 keeps the size."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    min_size: int = 640
    max_size: int = 2560

    def resize(self, image: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> the same photo at test size."""
        return resize_for_test(image, self.min_size, self.max_size) if self.min_size else image


@dataclass(frozen=True)
class View:
    """One look at a photo. size_hw: of the whole photo as it is looked at; box: the part of it that is seen,
    in pixels of that size; mirrored: whether left and right change places, after the cut.
    """

    size_hw: tuple[int, int]
    box: Box
    mirrored: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether this is the photo as it is, all of it."""
        return self.box == (0, 0, *self.size_hw) and not self.mirrored

    @property
    def seen_hw(self) -> tuple[int, int]:
        """Height and width of what is seen, pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def look(self, whole: Tensor) -> Tensor:
        """(..., H, W) of size_hw, a photo or its labels -> (..., h, w), what is seen."""
        if self.is_whole:
            return whole
        top, left, bottom, right = self.box
        seen = whole[..., top:bottom, left:right]
        return seen.flip(-1) if self.mirrored else seen.contiguous()

    def place(self, grid_hw: tuple[int, int]) -> Box:
        """The box on a grid over the same photo, in whole cells, at least one; boxes that touch still do.

        Where the grid is not the size looked at, edges are rounded: they are up to half a cell off.
        """
        top, left, bottom, right = self.box
        rows, columns = grid_hw[0] / self.size_hw[0], grid_hw[1] / self.size_hw[1]
        first, before = int(top * rows + 0.5), int(left * columns + 0.5)
        first, before = min(first, grid_hw[0] - 1), min(before, grid_hw[1] - 1)
        return (
            first,
            before,
            max(first + 1, int(bottom * rows + 0.5)),
            max(before + 1, int(right * columns + 0.5)),
        )


@dataclass(frozen=True)
class Views:
    """Which views are taken of every photo.

    sizes: sizes of the photo, () for the segmenter's own; flip: each view mirrored too; windows: edge of a
    square window, pixels of the resized photo, one for all sizes or one for each, 0 or () for the whole;
    stride: its step, pixels, 0 for a third of the window, rounded up.

    Raises:
        TwostageError: as many windows as sizes are needed, or one; a stride beyond a window leaves gaps.
    """

    sizes: tuple[TestSize, ...] = ()
    flip: bool = False
    windows: tuple[int, ...] = ()
    stride: int = 0

    def __post_init__(self) -> None:
        if len(self.windows) > 1 and len(self.windows) != max(1, len(self.sizes)):
            raise TwostageError(
                f"TEST.WINDOW.SIZE: {len(self.windows)} windows for {max(1, len(self.sizes))} sizes of the "
                "photo; give one for all, or one for each of TEST.AUG.MIN_SIZES."
            )
        if self.stride < 0 or any(window < 0 for window in self.windows):
            raise TwostageError(
                f"TEST.WINDOW: expected 0 or more pixels, got SIZE {list(self.windows)}, "
                f"STRIDE {self.stride}."
            )
        for window in self.windows:
            if 0 < window < self.stride:
                raise TwostageError(
                    f"TEST.WINDOW.STRIDE: a step of {self.stride} pixels leaves gaps between windows of "
                    f"{window}; use {window} or less, or 0 for a third of the window."
                )

    @property
    def plain(self) -> bool:
        """Whether a photo is looked at once, whole, at the segmenter's own size."""
        return not self.sizes and not self.flip and not any(self.windows)

    def of(self, number: int, size_hw: tuple[int, int]) -> list[View]:
        """The views of a photo that the size with this number has made (height, width)."""
        window = self.windows[number if len(self.windows) > 1 else 0] if self.windows else 0
        boxes: list[Box] = [(0, 0, *size_hw)]
        if window:
            step = self.stride or -(-window // 3)
            boxes = window_boxes(size_hw, (window, window), (step, step))
        return [View(size_hw, box, mirrored) for box in boxes for mirrored in (False, True)[: 1 + self.flip]]
