"""Mixing and resizing in strips against torch on whole maps, and pooling against a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from twostage.ops.fusion import (
    RowResizer,
    class_weights,
    geometric_mean,
    mix_strip,
    pool_logits,
    strips,
)

SIZES = [((12, 17), (12, 17)), ((12, 17), (30, 40)), ((30, 41), (13, 9)), ((5, 1), (1, 7)), ((1, 1), (6, 4))]


def stitched(resizer: RowResizer, maps: torch.Tensor, rows: int) -> torch.Tensor:
    height = resizer.size_hw[0]
    return torch.cat(
        [resizer.strip(maps, at, min(at + rows, height)) for at in range(0, height, rows)], dim=1
    )


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_strips_equal_one_bilinear_resize(source: tuple[int, int], size: tuple[int, int], rows: int) -> None:
    maps = torch.randn(3, *source, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    # torch rounds the source position to float32, which moves values by up to 40 pixels x 6e-8 x slope
    torch.testing.assert_close(stitched(RowResizer(source, size), maps, rows), whole, rtol=1e-5, atol=1e-5)


def test_a_strip_touches_only_the_rows_it_needs() -> None:
    maps = torch.full((1, 100, 4), torch.nan)
    resizer = RowResizer((100, 4), (50, 4))
    begin, end = resizer.source_rows(10, 12)
    maps[:, begin:end] = 1
    assert end - begin <= 4
    assert torch.equal(resizer.strip(maps, 10, 12), torch.ones(1, 2, 4))


@pytest.mark.parametrize("counts", [(3, 8), (8, 3), (0, 4)])
@pytest.mark.parametrize("hard", [False, True])
def test_mixing_commutes_with_resizing(counts: tuple[int, int], hard: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(*counts, generator=generator)
    masks = torch.rand(counts[0], 11, 14, generator=generator)
    masks = masks > 0.5 if hard else masks
    whole = torch.einsum("nk,nhw->khw", scores, masks.float())
    whole = F.interpolate(whole[None], (20, 33), mode="bilinear", align_corners=False)[0]
    resizer = RowResizer((11, 14), (20, 33))
    made = torch.cat([mix_strip(scores, masks, resizer, a, a + 5) for a in range(0, 20, 5)], dim=1)
    torch.testing.assert_close(made, whole, rtol=1e-5, atol=2e-6)


def test_strips_cover_every_row_once_within_the_budget() -> None:
    ranges = list(strips(10, (101, 50), budget_bytes=4 * 10 * 50 * 7))
    assert [row for first, last in ranges for row in range(first, last)] == list(range(101))
    assert max(last - first for first, last in ranges) == 7
    assert list(strips(10**6, (3, 10), budget_bytes=1)) == [(0, 1), (1, 2), (2, 3)]


def test_geometric_mean_at_its_ends_and_at_zero() -> None:
    first, second = torch.tensor([0.25, 0.0, 0.0]), torch.tensor([0.64, 0.5, 0.0])
    assert torch.equal(geometric_mean(first, second, 0.0), first)
    assert torch.equal(geometric_mean(first, second, 1.0), second)
    torch.testing.assert_close(geometric_mean(first, second, 0.5), torch.tensor([0.4, 0.0, 0.0]))


def test_class_weights_follow_the_flags() -> None:
    device = torch.device("cpu")
    weights = class_weights(0.75, 0.25, (True, False), 2, device)
    assert weights.tolist() == [0.25, 0.75]
    assert class_weights(0.75, 0.25, None, 3, device).tolist() == [0.75] * 3


def test_pooling_is_a_mean_under_the_mask() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 3, 5, generator=generator)
    masks = torch.rand(2, 6, 10, generator=generator)
    masks = torch.cat([masks, torch.zeros(1, 6, 10)])
    pooled, found = pool_logits(logits, masks)
    for row in range(2):
        total, weight = torch.zeros(4), 0.0
        for y in range(6):
            for x in range(10):
                total += masks[row, y, x] * logits[:, y // 2, x // 2]
                weight += masks[row, y, x].item()
        torch.testing.assert_close(pooled[row], total / weight, rtol=1e-5, atol=1e-6)
    assert found.tolist() == [True, True, False]
    assert torch.equal(pooled[2], torch.zeros(4))
