"""Single pixels of a resized map, against torch's own resizing of all of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from twostage.ops.sampling import BilinearSampler


@pytest.mark.parametrize("size_hw", [(9, 7), (20, 31), (4, 3), (1, 1), (9, 15)])
def test_as_interpolate(size_hw: tuple[int, int]) -> None:
    maps = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(maps[None], size_hw, mode="bilinear", align_corners=False)[0].flatten(1)
    pixels = torch.arange(whole.shape[1]).flip(0)[::2]
    assert torch.allclose(BilinearSampler((9, 7), size_hw, pixels)(maps), whole[:, pixels], atol=1e-6)


def test_bool_masks_and_no_pixels() -> None:
    take = BilinearSampler((4, 4), (8, 8), torch.tensor([0, 63]))
    assert take(torch.ones(2, 4, 4, dtype=torch.bool)).tolist() == [[1, 1], [1, 1]]
    assert BilinearSampler((4, 4), (8, 8), torch.zeros(0, dtype=torch.long))(torch.ones(2, 4, 4)).shape == (
        2,
        0,
    )
