"""Sliding windows: cover, count, partition of unity, and the recorded stitching of a public
implementation."""

from __future__ import annotations

import dense_records
import pytest
import torch

from twostage.ops.windows import Stitcher, window_boxes


def test_hand_made_boxes() -> None:
    assert window_boxes((4, 10), (4, 4), (4, 4)) == [(0, 0, 4, 4), (0, 4, 4, 8), (0, 6, 4, 10)]
    assert window_boxes((3, 5), (8, 8), (4, 4)) == [(0, 0, 3, 5)]
    assert window_boxes((8, 8), (8, 8), (3, 3)) == [(0, 0, 8, 8)]
    assert window_boxes((9, 8), (8, 8), (8, 8)) == [(0, 0, 8, 8), (1, 0, 9, 8)]


@pytest.mark.parametrize("size", [(1, 1), (7, 31), (32, 32), (33, 50), (100, 41)])
@pytest.mark.parametrize(("window", "stride"), [(32, 16), (32, 32), (10, 7), (10, 1)])
def test_every_pixel_is_averaged_once(size: tuple[int, int], window: int, stride: int) -> None:
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    stitcher = Stitcher(2, size)
    boxes = window_boxes(size, (window, window), (stride, stride))
    for box in boxes:
        top, left, bottom, right = box
        assert (bottom - top, right - left) == (min(window, size[0]), min(window, size[1]))
        stitcher.add(box, image[:, top:bottom, left:right])
    assert len(set(boxes)) == len(boxes)
    torch.testing.assert_close(stitcher.result(), image, rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="leaves gaps"):
        window_boxes((9, 9), (4, 4), (5, 4))
    with pytest.raises(ValueError, match="at least 1"):
        window_boxes((9, 9), (0, 4), (1, 1))
    stitcher = Stitcher(1, (2, 2))
    stitcher.add((0, 0, 1, 2), torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="in no window"):
        stitcher.result()


@pytest.mark.golden
@pytest.mark.parametrize("case", ["336x448", "200x500"])
def test_recorded_stitching(case: str) -> None:
    record = dense_records.case("slide_fixed_function", case)
    crop, stride = record["options"]["crop"], record["options"]["stride"]
    size = tuple(record["options"]["image_hw"])
    image = dense_records.image(size)[0]
    stitcher = Stitcher(7, size)
    for box in window_boxes(size, (crop, crop), (stride, stride)):
        top, left, bottom, right = box
        part = image[:, top:bottom, left:right]
        tall, wide = part.shape[1:]
        means = part.mean(dim=(1, 2), keepdim=True).expand_as(part)
        y, x = torch.arange(tall)[:, None], torch.arange(wide)[None]
        stitcher.add(box, torch.cat([part, means, (y / tall + 2 * x / wide)[None]]))
    dense_records.compare(record, "map", stitcher.result())
