"""Boxes around parts of maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twostage.ops.boxes import box_of, enclosed


def parts(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Connected parts by flood filling, eight neighbours."""
    left = {(y, x) for y, x in mask.nonzero().tolist()}
    found = []
    while left:
        waiting, part = [min(left)], []
        while waiting:
            y, x = waiting.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.append((y, x))
                waiting += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        found.append(part)
    return found


@pytest.mark.parametrize("shape", [(7, 9), (1, 6), (5, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_what_boxes_enclose(shape: tuple[int, int], share: float) -> None:
    maps = torch.rand(6, *shape, generator=torch.Generator().manual_seed(5)) < share
    expected = torch.zeros(6, *shape, dtype=torch.bool)
    for index, mask in enumerate(maps):
        for part in parts(mask):
            rows, columns = [y for y, _ in part], [x for _, x in part]
            bottom = min(max(rows) + 1, max(1, shape[0] - 1))
            right = min(max(columns) + 1, max(1, shape[1] - 1))
            expected[index, min(rows) : bottom, min(columns) : right] = True
    assert torch.equal(enclosed(maps), expected)


def test_box_around_everything_that_is_true() -> None:
    mask = torch.zeros(6, 8, dtype=torch.bool)
    assert box_of(mask) is None
    mask[5, 3] = True
    assert box_of(mask) is None, "the last row is cut off"
    mask[2, 1] = mask[4, 7] = True
    assert box_of(mask) == (2, 1, 5, 7)
    assert box_of(torch.ones(1, 1, dtype=torch.bool)) == (0, 0, 1, 1)
