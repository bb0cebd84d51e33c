"""Boxes, areas and resizing of masks against loops over single pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from twostage.ops.masks import (
    binarise,
    expand_boxes,
    mask_areas,
    mask_boxes,
    mean_on_grid,
    upsample_mask_logits,
)


def random_masks(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).random((count, height, width))
    soft = np.stack([ndimage.gaussian_filter(layer, 2) for layer in noise])
    return torch.from_numpy((soft - soft.mean()) / soft.std() * 0.3 + 0.3).float().clamp(0, 1)


def slow_box(mask: torch.Tensor) -> list[int]:
    pixels = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
    if not pixels:
        return [-1] * 4
    rows, columns = [y for y, _ in pixels], [x for _, x in pixels]
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def test_checklist_06_threshold_is_strict() -> None:
    soft = torch.tensor([[[0.5, 0.50000006, 0.49999997]]])
    assert binarise(soft, 0.5).tolist() == [[[False, True, False]]]
    assert binarise(soft, 1.0).sum() == 0
    hard = soft > 0.4
    assert binarise(hard, 0.9) is hard


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (13, 1), (17, 23)])
def test_checklist_07_boxes_are_tight_and_end_exclusive(size: tuple[int, int]) -> None:
    binary = random_masks(6, *size) > 0.55
    binary[2] = False
    assert mask_boxes(binary).tolist() == [slow_box(mask) for mask in binary]


def test_boxes_of_single_pixels_and_of_the_full_mask() -> None:
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 0, 0] = masks[1, 4, 6] = True
    masks[2] = True
    assert mask_boxes(masks).tolist() == [[0, 0, 1, 1], [6, 4, 7, 5], [0, 0, 7, 5], [-1] * 4]


def test_boxes_of_a_view_and_of_no_masks() -> None:
    binary = random_masks(4, 12, 20) > 0.5
    assert torch.equal(mask_boxes(binary[::2, 1:, 3:]), mask_boxes(binary[::2, 1:, 3:].clone()))
    assert mask_boxes(torch.zeros(0, 4, 4, dtype=torch.bool)).shape == (0, 4)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 1.1, 1.5, 3.0])
def test_boxes_grow_about_their_centres(ratio: float) -> None:
    boxes = torch.tensor([[3, 2, 8, 6], [0, 0, 1, 1], [19, 9, 20, 10], [0, 0, 20, 10], [-1, -1, -1, -1]])
    for before, after in zip(boxes.tolist(), expand_boxes(boxes, ratio, (10, 20)).tolist(), strict=True):
        if before[0] < 0:
            assert after == before
            continue
        expected = []
        for axis, limit in ((0, 20), (1, 10)):
            centre, half = (
                (before[axis] + before[axis + 2]) / 2,
                (before[axis + 2] - before[axis]) / 2 * ratio,
            )
            low = min(max(math.trunc(centre - half), 0), limit - 1)
            expected.append((low, max(min(max(math.trunc(centre + half), 0), limit), low + 1)))
        assert after == [expected[0][0], expected[1][0], expected[0][1], expected[1][1]]


def test_a_ratio_of_one_changes_no_box() -> None:
    boxes = mask_boxes(random_masks(30, 21, 34) > 0.6)
    grown = expand_boxes(boxes, 1.0 + 1e-12, (21, 34))
    assert torch.equal(expand_boxes(boxes, 1.0, (21, 34)), boxes)
    assert (grown - boxes).abs().max() <= 1


def test_areas_count_pixels() -> None:
    binary = random_masks(5, 19, 31) > 0.4
    assert mask_areas(binary).tolist() == [int(mask.numpy().sum()) for mask in binary]
    assert (
        mask_areas(torch.ones(1, 300, 400, dtype=torch.bool)).item() == 120_000
    )  # more than a byte can count


def test_logits_are_resized_cut_and_only_then_squashed() -> None:
    logits = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    probs = upsample_mask_logits(logits, (16, 24), (13, 21))
    assert probs.shape == (3, 13, 21)
    assert probs.is_contiguous()
    for y, x in [(0, 0), (5, 7), (12, 20)]:
        rows, columns = (y + 0.5) / 4 - 0.5, (x + 0.5) / 4 - 0.5
        value = ndimage.map_coordinates(
            logits[1].numpy().astype(float), [[rows], [columns]], order=1, mode="nearest"
        )
        assert probs[1, y, x].item() == pytest.approx(1 / (1 + math.exp(-value[0])), abs=1e-6)


def test_cells_hold_the_share_a_mask_covers() -> None:
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, :2, :3] = True
    assert mean_on_grid(masks, (2, 2)).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]
    assert mean_on_grid(masks, (1, 1)).item() == pytest.approx(6 / 24)
    assert mean_on_grid(masks, (8, 12)).sum() == 24
    assert mean_on_grid(masks[:0], (2, 2)).shape == (0, 2, 2)
