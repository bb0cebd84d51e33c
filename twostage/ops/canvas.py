"""Mean of the class maps of many views of one photo, in bounded memory.

K classes, H x W pixels of the photo, h x w cells of the grid on which maps are summed: the photo's own pixels
where that fits the budget, a coarser grid of the same shape otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from twostage.ops.fusion import RowResizer, strips
from twostage.ops.windows import Box

CLASSES_AT_ONCE = 64
"""Maps that are turned over and added together, so that no copy of all of them is made."""


def grid_within(num_classes: int, size_hw: tuple[int, int], budget_bytes: int) -> tuple[int, int]:
    """The size itself where num_classes float32 maps of it fit the budget, or else the largest grid of its
    shape that does; at least one cell.
    """
    need = 4 * num_classes * size_hw[0] * size_hw[1]
    if need <= budget_bytes:
        return size_hw
    scale = math.sqrt(budget_bytes / need)
    return max(1, int(size_hw[0] * scale)), max(1, int(size_hw[1] * scale))


class Canvas:
    """Sums the maps of views and gives back their mean, a strip of rows at a time."""

    def __init__(
        self,
        num_classes: int,
        size_hw: tuple[int, int],
        budget_bytes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """size_hw: the photo's; budget_bytes: most memory for the K maps; a grid that does not fit becomes
        coarser, and `strips` enlarges its rows bilinearly.
        """
        self.num_classes, self.size_hw = num_classes, size_hw
        self.grid_hw = grid_within(num_classes, size_hw, budget_bytes)
        self._sum = torch.zeros(num_classes, *self.grid_hw, device=device)
        self._views = torch.zeros(self.grid_hw, device=device)

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        return self._sum.device

    def add(self, box: Box, class_map: Tensor, speaks: Tensor | None = None, mirrored: bool = False) -> None:
        """One more view. box: its place on the grid, cells; class_map: (K, box height, box width) float32;
        speaks: (box height, box width) bool, where the view has a say (None: everywhere); mirrored: the two
        come from a mirror image and are turned back here.
        """
        top, left, bottom, right = box
        turned = (2,) if mirrored else ()
        for first in range(0, self.num_classes, CLASSES_AT_ONCE):
            part = class_map[first : first + CLASSES_AT_ONCE]
            part = part if speaks is None else part * speaks
            self._sum[first : first + CLASSES_AT_ONCE, top:bottom, left:right] += part.flip(turned)
        heard: Tensor | int = 1 if speaks is None else speaks[None].flip(turned)[0]
        self._views[top:bottom, left:right] += heard

    def strips(self, size_hw: tuple[int, int] | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Rows of a map of size_hw (None: the photo's), their mean class map (K, r, W) float32, and where no
        view had a say, (r, W) bool or None if there is no such place.
        """
        size_hw = self.size_hw if size_hw is None else size_hw
        resizer = RowResizer(self.grid_hw, size_hw)
        silent = None if bool(self._views.all()) else (self._views == 0).float()[None]
        for first, last in strips(self.num_classes, size_hw):
            begin, end = resizer.source_rows(first, last)
            mean = self._sum[:, begin:end] / self._views[begin:end].clamp(min=1)
            void = None if silent is None else resizer.strip(silent, first, last)[0] > 0.5
            yield slice(first, last), resizer.resize(mean, first, last), void
