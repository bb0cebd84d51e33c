"""The cells of a grid against arithmetic on single pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twostage.proposals.grid import GridConfig, GridProposals
from twostage.registry import ComponentError


def found(size_hw: tuple[int, int], **options: int) -> torch.Tensor:
    image = torch.zeros(3, *size_hw, dtype=torch.uint8)
    return GridProposals(GridConfig(**options)).propose([image])[0].masks


def test_cells_in_reading_order() -> None:
    masks = found((6, 10), rows=3, columns=2)
    assert masks.shape == (6, 6, 10)
    for number, mask in enumerate(masks):
        row, column = divmod(number, 2)
        expected = torch.zeros(6, 10, dtype=torch.bool)
        expected[2 * row : 2 * row + 2, 5 * column : 5 * column + 5] = True
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 13), (7, 2), (31, 45)])
def test_every_pixel_once_and_sides_alike(size_hw: tuple[int, int]) -> None:
    masks = found(size_hw, rows=15, columns=20)
    assert len(masks) == min(15, size_hw[0]) * min(20, size_hw[1])
    assert (masks.sum(dim=0) == 1).all()
    heights, widths = masks.any(dim=2).sum(dim=1), masks.any(dim=1).sum(dim=1)
    assert int(heights.min()) > 0
    assert heights.max() - heights.min() <= 1
    assert widths.max() - widths.min() <= 1


def test_three_hundred_cells() -> None:
    assert len(found((60, 80), rows=15, columns=20)) == 300


def test_levels_halve_the_grid_down_to_one_cell() -> None:
    masks = found((16, 16), rows=4, columns=8, levels=9)
    assert [len(masks), *(int(m.sum()) for m in masks[[0, 32, 40, 42]])] == [43, 8, 32, 128, 256]
    for first, last in ((0, 32), (32, 40), (40, 42), (42, 43)):
        assert (masks[first:last].sum(dim=0) == 1).all()
    assert len(found((1, 1), rows=4, columns=8, levels=9)) == 1, "no cell comes twice"


@pytest.mark.parametrize("options", [{"rows": 0}, {"columns": -1}, {"levels": 0}])
def test_options_that_do_not_do(options: dict[str, Any]) -> None:
    with pytest.raises(ComponentError, match=f"{next(iter(options))} must be at least 1"):
        GridConfig(**options)
