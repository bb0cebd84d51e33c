"""Logits at output size strip by strip, against the naive computation on whole maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twostage.ensembles._enlarge import Enlarged
from twostage.ops.fusion import strips
from twostage.types import DenseScores, PixelScores

SIZES = [
    ((8, 12), 4, (32, 48), (32, 48)),  # nothing to cut, nothing to resize
    ((8, 12), 4, (29, 46), (29, 46)),  # cut
    ((8, 12), 4, (30, 47), (61, 95)),  # larger than it was looked at
    ((8, 12), 4, (31, 45), (13, 20)),  # smaller
    ((16, 16), 4, (33, 47), (40, 30)),  # padded far beyond, other proportions
    ((5, 7), 1, (5, 7), (9, 4)),
    ((1, 1), 4, (3, 2), (1, 1)),
]


def resized(maps: Tensor, stride: int, image_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, H, W) in the paper's two steps."""
    full = functional.interpolate(maps[None], scale_factor=stride, mode="bilinear", align_corners=False)
    full = full[..., : image_hw[0], : image_hw[1]]
    return functional.interpolate(full, size=size_hw, mode="bilinear", align_corners=False)[0]


def made(grid: tuple[int, int], classes: int = 5, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (D, h, w) of unlike lengths, text (K, D) of length one, and their 100 cosines (K, h, w)."""
    draw = torch.Generator().manual_seed(sum(grid))
    embeddings = torch.randn(dim, *grid, generator=draw) * (0.1 + 10 * torch.rand(*grid, generator=draw))
    text = functional.normalize(torch.randn(classes, dim, generator=draw), dim=1)
    unit = embeddings / embeddings.norm(dim=0)
    return embeddings, text, 100 * torch.einsum("kd,dhw->khw", text, unit)


def all_rows(enlarged: Enlarged, size_hw: tuple[int, int], budget: int) -> Tensor:
    ranges = strips(enlarged.num_maps, size_hw, budget)
    return torch.cat([enlarged.rows(first, last) for first, last in ranges], dim=1)


@pytest.mark.parametrize("budget", [1, 4000, 10**9])
@pytest.mark.parametrize(("grid", "stride", "image_hw", "size_hw"), SIZES)
def test_the_papers_order(
    grid: tuple[int, int], stride: int, image_hw: tuple[int, int], size_hw: tuple[int, int], budget: int
) -> None:
    """All D components enlarged, then normalised, then compared."""
    embeddings, text, logits = made(grid)
    full = resized(embeddings, stride, image_hw, size_hw)
    naive = 100 * torch.einsum("kd,dhw->khw", text, full / full.norm(dim=0))
    enlarged = Enlarged(PixelScores(logits, stride, image_hw, embeddings), size_hw)
    rows = all_rows(enlarged, size_hw, budget)
    torch.testing.assert_close(rows, naive, rtol=1e-4, atol=1e-3)
    # Where two words are within rounding of each other either may win.
    best = naive.topk(2, dim=0).values
    sure = best[0] - best[1] > 1e-3
    assert torch.equal(rows.argmax(0)[sure], naive.argmax(0)[sure])


@pytest.mark.parametrize(("grid", "stride", "image_hw", "size_hw"), SIZES)
def test_the_grids_order(
    grid: tuple[int, int], stride: int, image_hw: tuple[int, int], size_hw: tuple[int, int]
) -> None:
    _, _, logits = made(grid)
    rows = all_rows(Enlarged(PixelScores(logits, stride, image_hw), size_hw), size_hw, 1000)
    torch.testing.assert_close(rows, resized(logits, stride, image_hw, size_hw), rtol=1e-5, atol=1e-4)


def test_orders_differ_between_cells_only() -> None:
    """In a cell that is looked at by itself both say the same; between unlike neighbours they do not."""
    embeddings, _, logits = made((4, 4))
    grid, paper = (
        Enlarged(PixelScores(logits, 1, (4, 4), own), (4, 4)).rows(0, 4) for own in (None, embeddings)
    )
    torch.testing.assert_close(grid, paper, rtol=1e-4, atol=1e-3)
    grid, paper = (
        Enlarged(PixelScores(logits, 4, (16, 16), own), (16, 16)).rows(0, 16) for own in (None, embeddings)
    )
    assert float((grid - paper).abs().max()) > 1
    alike = embeddings[:, :1, :1].expand(-1, 4, 4).contiguous()
    same = logits[:, :1, :1].expand(-1, 4, 4).contiguous()
    grid, paper = (
        Enlarged(PixelScores(same, 4, (16, 16), own), (16, 16)).rows(0, 16) for own in (None, alike)
    )
    torch.testing.assert_close(grid, paper, rtol=1e-4, atol=1e-3)


def test_opposite_neighbours_cancel_without_a_zero_division() -> None:
    embeddings = torch.tensor([[[1.0, -1.0]], [[0.0, 0.0]]])
    logits = torch.tensor([[[100.0, -100.0]]])
    scores = PixelScores(logits, 2, (2, 3), embeddings)
    assert torch.isfinite(Enlarged(scores, (2, 3)).rows(0, 2)).all()


def test_a_plain_map_takes_one_step() -> None:
    _, _, logits = made((4, 6))
    rows = all_rows(Enlarged(DenseScores(logits), (9, 20)), (9, 20), 700)
    expected = functional.interpolate(logits[None], size=(9, 20), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-4)


def test_strips_count_the_larger_side() -> None:
    """A small label map of a large photo: what a strip touches is counted in the photo's pixels."""
    embeddings, _, logits = made((8, 8))
    assert Enlarged(PixelScores(logits, 4, (32, 32)), (64, 64)).num_maps == 5
    assert Enlarged(PixelScores(logits, 4, (32, 32)), (16, 8)).num_maps == 5 * 8
    assert Enlarged(PixelScores(logits, 4, (32, 32), embeddings), (32, 32)).num_maps == 16


def test_nothing_given_is_changed() -> None:
    embeddings, _, logits = made((4, 4))
    before = embeddings.clone(), logits.clone()
    Enlarged(PixelScores(logits, 4, (15, 16), embeddings), (20, 9)).rows(0, 20)
    assert torch.equal(before[0], embeddings)
    assert torch.equal(before[1], logits)
