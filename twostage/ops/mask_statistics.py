"""How many masks there are, how large, and how much of a picture they cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from twostage.ops.masks import binarise


@dataclass(frozen=True)
class MaskStatistics:
    """areas: each mask's share of the picture, 0..1; covered: share of the pixels in at least one mask;
    overlap: mean number of masks over those pixels, None where there are none.
    """

    areas: tuple[float, ...]
    covered: float
    overlap: float | None

    @property
    def count(self) -> int:
        """How many masks, empty ones too."""
        return len(self.areas)


def mask_statistics(masks: Tensor, threshold: float = 0.5) -> MaskStatistics:
    """masks: (N, H, W) bool or float; a soft mask has the pixels strictly above the threshold.

    One mask at a time is made binary, so that N binary copies never exist together.
    """
    anywhere = np.zeros(tuple(masks.shape[1:]), dtype=bool)
    counts = []
    for mask in masks.detach().cpu():
        inside = binarise(mask, threshold).numpy()
        counts.append(int(np.count_nonzero(inside)))
        anywhere |= inside
    covered, pixels = int(np.count_nonzero(anywhere)), max(anywhere.size, 1)
    areas = tuple(count / pixels for count in counts)
    return MaskStatistics(areas, covered / pixels, sum(counts) / covered if covered else None)
