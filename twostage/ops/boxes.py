"""Bounding boxes of the connected parts of maps, and what they enclose.

Shapes: C maps of h x w.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))]).astype(int)
"""Places touch their eight neighbours in the same map, and no other map."""


def ends(size: int) -> int:
    """Where boxes on a side of this length end at the latest: before the last place, as recorded of
    TagCLIP; a side of one is kept (ours), or nothing would be left.
    """
    return max(1, size - 1)


def enclosed(maps: Tensor) -> Tensor:
    """(C, h, w) bool -> (C, h, w) bool: what lies in the bounding box of any connected part (eight
    neighbours), boxes cut off before the last row and column.
    """
    marks, _ = ndimage.label(maps.cpu().numpy(), structure=_IN_PLANE)
    found = np.zeros(marks.shape, dtype=bool)
    for box in ndimage.find_objects(marks):
        found[box] = True
    height, width = maps.shape[1:]
    found[:, ends(height) :] = False
    found[:, :, ends(width) :] = False
    return torch.from_numpy(found).to(maps.device)


def box_of(mask: Tensor) -> tuple[int, int, int, int] | None:
    """(h, w) bool -> top, left, bottom, right of the box around all that is true, end-exclusive and cut off
    before the last row and column; None where nothing is left of it.
    """
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0:
        return None
    bottom, right = (
        min(int(rows[-1]) + 1, ends(mask.shape[0])),
        min(int(columns[-1]) + 1, ends(mask.shape[1])),
    )
    top, left = int(rows[0]), int(columns[0])
    return (top, left, bottom, right) if top < bottom and left < right else None
