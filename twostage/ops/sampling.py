"""Values of a resized map at single pixels, without the resized map."""

from __future__ import annotations

import torch
from torch import Tensor


class BilinearSampler:
    """Bilinear resizing (align_corners False, no antialias) at chosen pixels of the result, as torch's
    `interpolate` gives them up to rounding.
    """

    def __init__(self, source_hw: tuple[int, int], size_hw: tuple[int, int], pixels: Tensor) -> None:
        """source_hw, size_hw: before and after; pixels: (P,) int64 of the result, row * width + column."""
        across = size_hw[1]
        places = (pixels // across, pixels % across)
        self._rows, self._columns = (
            _between(place, source, size)
            for place, source, size in zip(places, source_hw, size_hw, strict=True)
        )

    def __call__(self, maps: Tensor) -> Tensor:
        """(C, H, W) float or bool -> (C, P) float32."""
        top, bottom, down = self._rows
        left, right, along = self._columns
        above = _mixed(maps[:, top, left], maps[:, top, right], along)
        below = _mixed(maps[:, bottom, left], maps[:, bottom, right], along)
        return above.lerp_(below, down)


def _between(place: Tensor, source: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source lines around each place, and how far it is from the first to the second."""
    exact = ((place.double() + 0.5) * (source / size) - 0.5).clamp(0, source - 1)
    low = exact.floor().long()
    return low, (low + 1).clamp(max=source - 1), (exact - low).float()


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(first.float(), second.float(), share)
