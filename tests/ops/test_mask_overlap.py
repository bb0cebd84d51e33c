"""Overlaps of masks against sets of pixels, suppression against a slow loop over pairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twostage.ops import mask_overlap
from twostage.ops.mask_overlap import mask_nms, pairwise_iou
from twostage.types import ShapeError

Pixels = set[tuple[int, int]]


def boxes(*corners: tuple[int, int, int, int], size_hw: tuple[int, int] = (12, 15)) -> Tensor:
    """(N, H, W) bool from (y0, x0, y1, x1), end-exclusive."""
    masks = torch.zeros(len(corners), *size_hw, dtype=torch.bool)
    for mask, (y0, x0, y1, x1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def noise(count: int, size_hw: tuple[int, int], seed: int = 0) -> Tensor:
    """Masks of every share of set pixels, the first one empty."""
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(count, *size_hw, generator=draw) < torch.linspace(0, 1, count)[:, None, None]


def slow_iou(one: Tensor, other: Tensor, stride: int = 1) -> float:
    first, second = ({(y, x) for y, x in m[::stride, ::stride].nonzero().tolist()} for m in (one, other))
    return len(first & second) / len(first | second) if first | second else 0.0


def slow_nms(masks: Tensor, scores: Tensor, iou: float) -> list[int]:
    kept: list[int] = []
    for candidate in sorted(range(len(masks)), key=lambda i: (-float(scores[i]), i)):
        if all(slow_iou(masks[candidate], masks[better]) <= iou for better in kept):
            kept.append(candidate)
    return kept


def test_overlaps_by_hand() -> None:
    masks = boxes((0, 0, 4, 4), (0, 2, 4, 6), (8, 8, 12, 12), (0, 0, 0, 0), (0, 0, 4, 4))
    expected = [[1, 1 / 3, 0, 0, 1], [1 / 3, 1, 0, 0, 1 / 3], [0, 0, 1, 0, 0], [0] * 5, [1, 1 / 3, 0, 0, 1]]
    torch.testing.assert_close(pairwise_iou(masks), torch.tensor(expected))


@pytest.mark.parametrize("strip", [1, 100, 2**22])
@pytest.mark.parametrize("stride", [1, 2, 5])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (13, 1), (11, 14)])
def test_overlaps_like_sets_of_pixels(
    size_hw: tuple[int, int], stride: int, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_overlap, "STRIP_VALUES", strip)
    masks, other = noise(6, size_hw), noise(4, size_hw, seed=1)
    expected = [[slow_iou(one, two, stride) for two in other] for one in masks]
    found = pairwise_iou(masks, other, stride)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected))
    expected = [[slow_iou(one, two, stride) for two in masks] for one in masks]
    torch.testing.assert_close(pairwise_iou(masks, stride=stride), torch.tensor(expected))


def test_overlaps_of_views_and_of_nothing() -> None:
    masks = noise(6, (10, 12))
    part = masks[::2, 1:, 3:]
    assert torch.equal(pairwise_iou(part), pairwise_iou(part.clone()))
    none = masks[:0]
    assert pairwise_iou(none).shape == (0, 0)
    assert pairwise_iou(none, masks).shape == (0, 6)
    assert pairwise_iou(masks, none).shape == (6, 0)
    assert mask_nms(none, torch.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_suppression_like_a_slow_loop(iou: float) -> None:
    draw = torch.Generator().manual_seed(2)
    corners = torch.randint(0, 7, (30, 4), generator=draw)
    corners[:, 2:] += corners[:, :2] + 1
    masks = boxes(*[(y, x, y1, x1) for y, x, y1, x1 in corners.tolist()], size_hw=(14, 14))
    scores = torch.randint(0, 5, (30,), generator=draw).float()
    kept = mask_nms(masks, scores, iou)
    assert kept.dtype == torch.int64
    assert kept.tolist() == slow_nms(masks, scores, iou)
    assert (len(kept) < 30) == (iou < 1)


def test_a_mask_that_fell_takes_nobody_with_it() -> None:
    masks = boxes((0, 0, 1, 10), (0, 3, 1, 13), (0, 6, 1, 15))
    assert pairwise_iou(masks)[1].tolist() == pytest.approx([7 / 13, 1, 7 / 12])
    assert mask_nms(masks, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert mask_nms(masks, torch.tensor([0.8, 0.9, 0.7]), 0.5).tolist() == [1]


def test_empty_masks_stay_and_equal_ones_fall() -> None:
    masks = boxes((0, 0, 0, 0), (2, 2, 5, 5), (0, 0, 0, 0), (2, 2, 5, 5))
    assert mask_nms(masks, torch.ones(4), 0.5).tolist() == [0, 1, 2]


def test_what_does_not_fit_is_refused() -> None:
    masks = noise(3, (5, 6))
    with pytest.raises(ShapeError, match=r"expected masks \(N, H, W\) bool, got \(3, 5, 6\) torch.float32"):
        pairwise_iou(masks.float())
    with pytest.raises(ShapeError, match="stride must be at least 1, got 0"):
        pairwise_iou(masks, stride=0)
    with pytest.raises(ShapeError, match=r"masks of \(5, 6\) and of \(6, 6\) pixels"):
        pairwise_iou(masks, noise(2, (6, 6)))
    with pytest.raises(ShapeError, match=r"expected \(3,\) scores, got \(2,\)"):
        mask_nms(masks, torch.ones(2), 0.5)
