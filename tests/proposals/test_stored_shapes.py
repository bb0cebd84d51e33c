"""Polygons, brush strokes and sizes, against geometry by hand and encoders written for these tests."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twostage.data.brush_rle import decode_brush
from twostage.data.errors import DataError
from twostage.data.polygons import PolygonError, fill_polygon, fill_polygons
from twostage.data.rle import RLEError
from twostage.ops.sizes import mismatch, only_scaled


def slow_fill(points: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Even-odd test of every pixel centre by the winding of angles, which knows nothing of scan lines."""
    mask = np.zeros((height, width), bool)
    for row in range(height):
        for column in range(width):
            turned = 0.0
            for (x, y), (u, v) in zip(points, points[1:] + points[:1], strict=True):
                first = math.atan2(y - row - 0.5, x - column - 0.5)
                second = math.atan2(v - row - 0.5, u - column - 0.5)
                turned += (second - first + math.pi) % (2 * math.pi) - math.pi
            mask[row, column] = round(turned / (2 * math.pi)) % 2 == 1
    return mask


def test_a_rectangle_has_exactly_its_area() -> None:
    mask = fill_polygon([3, 2, 9, 2, 9, 7, 3, 7], (10, 12))
    expected = np.zeros((10, 12), bool)
    expected[2:7, 3:9] = True
    assert np.array_equal(mask, expected)
    assert mask.sum() == 6 * 5
    assert np.array_equal(fill_polygon([[3, 7], [9, 7], [9, 2], [3, 2]], (10, 12)), expected)


def test_pixels_belong_by_their_centre() -> None:
    assert fill_polygon([0.5, 0, 2.5, 0, 2.5, 1, 0.5, 1], (1, 4)).tolist() == [[True, True, False, False]]
    assert fill_polygon([0.51, 0, 2.51, 0, 2.51, 1, 0.51, 1], (1, 4)).tolist() == [[False, True, True, False]]


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    centre, corners = (6.5, 4.5), [(0, 0), (13, 0), (13, 9), (0, 9)]
    fans = [
        fill_polygon([a, b, centre], (9, 13)) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    assert (np.sum(fans, axis=0) == 1).all()


@pytest.mark.parametrize("seed", range(12))
def test_any_polygon_like_the_slow_one(seed: int) -> None:
    """Crossing outlines and corners outside the photo too; odd coordinates keep centres off the edges."""
    rng = np.random.default_rng(seed)
    points = [(float(x), float(y)) for x, y in rng.uniform(-6, 22, (rng.integers(3, 9), 2))]
    assert np.array_equal(fill_polygon(points, (14, 17)), slow_fill(points, 14, 17))


def test_far_away_and_flat_polygons() -> None:
    assert not fill_polygon([100, 100, 120, 100, 110, 130], (8, 8)).any()
    assert fill_polygon([-1e9, -1e9, 1e9, -1e9, 1e9, 1e9, -1e9, 1e9], (8, 8)).all()
    assert not fill_polygon([1, 4, 5, 4, 7, 4], (8, 8)).any()


def test_parts_are_united() -> None:
    mask = fill_polygons([[0, 0, 4, 0, 4, 1, 0, 1], [2, 0, 6, 0, 6, 1, 2, 1]], (1, 8))
    assert mask.tolist() == [[True] * 6 + [False] * 2]
    assert not fill_polygons([], (2, 2)).any()


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ([0, 0, 4, 4], "at least three points x, y; got 4 numbers"),
        ([0, 0, 4, 4, 1], "an odd count"),
        ([0, 0, 4, 4, 1, float("nan")], "not finite"),
        (["a", 0, 4, 4, 1, 1], "list of numbers"),
        ([[0, 0], [1, 1], [2]], "list of numbers"),
        (None, "at least three points"),
    ],
)
def test_no_polygons(points: object, says: str) -> None:
    with pytest.raises(PolygonError, match=says):
        fill_polygon(points, (5, 5))
    with pytest.raises(PolygonError, match=f"part 1: .*{says}"):
        fill_polygons([[0, 0, 4, 0, 4, 4], points], (5, 5))


def packed(words: list[int], lengths: tuple[int, ...] = (3, 4, 8, 16), greedy: bool = True) -> list[int]:
    """The layout of rle-pack written as a text of 0s and 1s. greedy: runs as such, or single words only."""
    text = f"{len(words):032b}" + f"{8 - 1:05b}" + "".join(f"{width - 1:04b}" for width in lengths)

    def length(count: int) -> str:
        kind = next(number for number, width in enumerate(lengths) if count - 1 < 2**width)
        return f"{kind:02b}" + format(count - 1, f"0{lengths[kind]}b")

    at = 0
    while at < len(words):
        end = at + 1
        while greedy and end < len(words) and words[end] == words[at] and end - at < 2 ** lengths[-1]:
            end += 1
        if end - at > 1:
            text += "1" + length(end - at) + f"{words[at]:08b}"
        else:
            end = at + 1
            while end < len(words) and end - at < 40 and (not greedy or words[end] != words[end - 1]):
                end += 1
            text += "0" + length(end - at) + "".join(f"{word:08b}" for word in words[at:end])
        at = end
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def brush(alpha: np.ndarray, colour: tuple[int, int, int] = (7, 200, 31)) -> list[int]:
    """A brush stroke as Label Studio's canvas holds it: R, G, B, A of every pixel, rows first."""
    return [value for row in alpha for a in row for value in (*(c if a else 0 for c in colour), int(a))]


@pytest.mark.parametrize("lengths", [(3, 4, 8, 16), (1, 2, 3, 9), (16, 16, 16, 16)])
@pytest.mark.parametrize("greedy", [True, False])
def test_brush_strokes_come_back(lengths: tuple[int, ...], greedy: bool) -> None:
    rng = np.random.default_rng(len(lengths) + greedy)
    alpha = (rng.random((13, 19)) > 0.6) * 255
    alpha[4:9, 2:15] = 255
    rle = packed(brush(alpha), lengths, greedy)
    assert np.array_equal(decode_brush(rle, (13, 19)), alpha > 0)
    white = packed(brush(alpha, (255, 255, 255)), lengths, greedy)
    assert np.array_equal(decode_brush(white, (13, 19)), alpha > 0)


def test_runs_longer_than_one_chunk() -> None:
    alpha = np.full((140, 130), 255)
    rle = packed(brush(alpha, (255, 255, 255)))
    assert len(rle) < 20
    assert decode_brush(rle, (140, 130)).all()


def test_half_transparent_rims_are_cut_in_the_middle() -> None:
    assert decode_brush(packed(brush(np.array([[0, 1, 127, 128, 255]]))), (1, 5)).tolist() == [
        [False, False, False, True, True]
    ]


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        (packed(brush(np.full((3, 4), 255)))[:-2], "end in the middle"),
        (packed(brush(np.full((3, 4), 255)))[:4], "too few for a header"),
        ([], "too few for a header"),
        (packed(brush(np.full((3, 5), 255))), r"speaks of 60 words, 4 x 3 pixels of RGBA have 48"),
        ([*packed(brush(np.full((3, 4), 255)))[:4], 0x18, 0, 0, 0], "words of 4 bits"),
        (["a"], "numbers from 0 to 255"),
        ([999], "numbers from 0 to 255"),
        ("text", "numbers from 0 to 255"),
        ([0, 0, 0, 48, 0x3F, 0xFF, 0xF8, 0x7F, 0xFF, 0xFF, 0xFF], "cover more than 48"),
    ],
)
def test_brushes_that_do_not_decode(rle: list[int], says: str) -> None:
    with pytest.raises(RLEError, match=says):
        decode_brush(rle, (3, 4))


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ((480, 640), (480, 640), True),
        ((480, 640), (240, 320), True),
        ((333, 500), (640, 961), True),
        ((333, 500), (107, 160), True),
        ((480, 640), (640, 480), False),
        ((480, 640), (512, 512), False),
        ((375, 500), (334, 500), False),
        ((1, 1), (1, 1), True),
        ((6, 8), (3, 4), True),
    ],
)
def test_which_sizes_can_be_of_one_picture(
    first: tuple[int, int], second: tuple[int, int], alike: bool
) -> None:
    assert only_scaled(first, second) is alike
    assert only_scaled(second, first) is alike


def test_every_rounded_scale_of_a_photo_is_recognised() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = rng.integers(20, 900, 2)
        first, second = ((round(height * s), round(width * s)) for s in rng.uniform(0.1, 4, 2))
        assert only_scaled(first, second)


def test_what_is_said_of_sizes() -> None:
    assert "is 640 x 480 (width x height), but its masks are 480 x 640" in mismatch(
        "it", (480, 640), (640, 480)
    )
    assert "changed places" in mismatch("it", (480, 640), (640, 480))
    assert "another picture" in mismatch("it", (480, 640), (512, 512))
    assert issubclass(PolygonError, DataError)
