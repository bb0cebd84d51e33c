"""The contact sheet of dense readouts: where its tiles are, what colours they have, any shape of photo."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from twostage.data.errors import LabelError
from twostage.visualize.dense_layout import LONGEST, NARROWEST_CELL, Layout, fitted
from twostage.visualize.dense_sheet import DenseView, dense_sheet, heat_colours
from twostage.visualize.palette import class_colours

NAMES = ("grass", "water", "brick")
SHAPES = [(30, 40), (200, 40), (40, 400), (7, 7), (1, 1), (3000, 1999)]


def view(size_hw: tuple[int, int], title: str = "one", winner: int = 0, label: int = 0) -> DenseView:
    logits = torch.zeros(3, 2, 3)
    logits[winner] = 20.0
    return DenseView(title, logits, torch.full(size_hw, label, dtype=torch.int32))


def photo(size_hw: tuple[int, int], value: int = 100) -> torch.Tensor:
    return torch.full((3, *size_hw), value, dtype=torch.uint8)


Box = tuple[int, int, int, int]


def boxes(layout: Layout, legend: int) -> dict[str, Box]:
    """Everything on a sheet as (left, top, right, bottom)."""
    height, width = layout.tile_hw
    half = layout.line // 2
    found = {"photo": (*layout.photo_xy, layout.photo_xy[0] + width, layout.photo_xy[1] + height)}
    for row in range(layout.rows):
        left, middle = layout.title_xy(row)
        found[f"title {row}"] = (left, middle - half, left + layout.width, middle + half)
        for column in range(layout.columns):
            left, top = layout.tile_xy(row, column)
            found[f"tile {row} {column}"] = (left, top, left + width, top + height)
            left, middle = layout.caption_xy(row, column)
            found[f"caption {row} {column}"] = (
                left,
                middle - half,
                left + layout.caption_width,
                middle + half,
            )
    for number in range(layout.legend_shown + (legend > layout.legend_shown)):
        left, middle = layout.legend_xy(number)
        right = left + round(1.5 * layout.letters) + layout.name_width
        found[f"legend {number}"] = (left, middle - half, right, middle + half)
    left, middle, wide = layout.scale
    found["scale"] = (left, middle - half, left + wide, middle + half)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 3), (2, 6), (20, 5)])
@pytest.mark.parametrize("legend", [1, 9, 48, 171])
def test_nothing_overlaps_and_all_is_on_the_sheet(
    shape: tuple[int, int], rows: int, columns: int, legend: int
) -> None:
    layout = Layout.of(shape, rows, columns).with_legend(legend, 130)
    height, width = layout.size_hw
    found = boxes(layout, legend)
    for name, (left, top, right, bottom) in found.items():
        assert 0 <= left < right <= width, name
        assert 0 <= top < bottom <= height, name
    if len(found) < 120:  # all pairs of a long sheet take too long, and its rows are alike
        for (one, a), (other, b) in combinations(found.items(), 2):
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            assert apart, f"{one} {a} lies over {other} {b}"


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_have_the_shape_of_the_photo(shape: tuple[int, int]) -> None:
    layout = Layout.of(shape, 1, 4)
    height, width = layout.tile_hw
    assert max(height, width) <= LONGEST
    assert width / height == pytest.approx(shape[1] / shape[0], rel=0.02)
    assert layout.cell_width >= max(width, NARROWEST_CELL)


def test_more_classes_than_room_are_counted() -> None:
    layout = Layout.of((40, 400), 1, 3).with_legend(171, 130)
    assert layout.legend_shown < 171
    assert layout.legend_shown == layout.legend[0] * layout.legend[1] - 1
    assert Layout.of((40, 400), 1, 3).with_legend(5, 130).legend_shown == 5


@pytest.mark.parametrize("shape", [(30, 40), (200, 40), (40, 400)])
def test_pixels_of_the_sheet(shape: tuple[int, int]) -> None:
    """Photo, labels in their colours, and heat where a class is certain or absent, at the layout's places."""
    views = [view(shape, winner=1, label=2), view(shape, winner=0, label=-1)]
    sheet = dense_sheet(photo(shape), views, NAMES, top=3, alpha=0.6)
    layout = Layout.of(shape, 2, 6).with_legend(4, 50)
    assert sheet.shape == (*layout.size_hw, 3)
    height, width = layout.tile_hw
    left, top = layout.photo_xy
    assert (sheet[top : top + height, left : left + width] == 100).all()

    def tile(row: int, column: int) -> np.ndarray:
        left, top = layout.tile_xy(row, column)
        assert (sheet[top : top + height, left + width : left + layout.cell_width] == 255).all()
        return sheet[top : top + height, left : left + width].reshape(-1, 3)

    colours = class_colours(NAMES).astype(float)
    tinted = lambda k: np.rint(0.4 * 100 + 0.6 * colours[k])
    assert np.abs(tile(0, 0) - tinted(2)).max() <= 1, "final labels: brick"
    assert np.abs(tile(0, 1) - tinted(1)).max() <= 1, "the map alone: water"
    assert np.abs(tile(1, 0) - np.rint(0.4 * 100 + 0.6 * 120)).max() <= 1, "no class: grey"
    assert np.abs(tile(1, 1) - tinted(0)).max() <= 1
    certain, absent = (0.25 * 100 + 0.75 * heat_colours(np.full((1, 1), v, np.float32))[0, 0] for v in (1, 0))
    assert np.abs(tile(0, 2) - certain).max() <= 1
    # One tile's area each for grass, water and brick: the order of the list decides, in every row alike.
    for row, winner in ((0, 1), (1, 0)):
        for k in range(3):
            assert np.abs(tile(row, 3 + k) - (certain if k == winner else absent)).max() <= 1


def test_columns_follow_the_area_over_all_readouts() -> None:
    views = [view((30, 40), winner=2, label=2), view((30, 40), winner=0, label=2)]
    sheet = dense_sheet(photo((30, 40)), views, NAMES, top=1)
    layout = Layout.of((30, 40), 2, 4).with_legend(2, 50)
    bright = []
    for row in range(2):
        left, top = layout.tile_xy(row, 3)
        bright.append(int(sheet[top + 5, left + 5].astype(int).sum()))
    assert bright[0] > 450, "brick has most area, and the first readout is sure of it"
    assert bright[1] < 160, "the second readout sees none"


def test_heat_goes_from_dark_to_bright() -> None:
    ramp = heat_colours(np.linspace(0, 1, 11, dtype=np.float32)[None])[0].astype(int).sum(axis=1)
    assert (np.diff(ramp) > 0).all()
    assert heat_colours(np.array([[-1.0, 2.0]], np.float32)).shape == (1, 2, 3)


def test_a_photo_smaller_or_larger_than_its_tile() -> None:
    assert fitted(np.full((2, 2, 3), 7, np.uint8), (50, 60)).shape == (50, 60, 3)
    chequered = np.indices((400, 400)).sum(axis=0) % 2 * 200
    small = fitted(np.repeat(chequered[..., None], 3, axis=2).astype(np.uint8), (100, 100))
    assert np.abs(small.astype(int) - 100).max() <= 2, "averaged, not sampled"


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ([], "no readout to show"),
        ([DenseView("two", torch.zeros(2, 4, 4), torch.zeros(30, 40, dtype=torch.int32))], r"\(3, h, w\)"),
        ([DenseView("flat", torch.zeros(3, 4), torch.zeros(30, 40, dtype=torch.int32))], r"\(3, h, w\)"),
        ([view((4, 4))], "its label map"),
        ([view((30, 40), label=3)], "expected integer labels"),
    ],
)
def test_what_does_not_fit_is_refused(views: list[DenseView], told: str) -> None:
    with pytest.raises(LabelError, match=told):
        dense_sheet(photo((30, 40)), views, NAMES)
