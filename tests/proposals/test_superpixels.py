"""Superpixels on pictures whose regions are known."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twostage.proposals.superpixels import SuperpixelsConfig, SuperpixelsProposals
from twostage.registry import ComponentError

pytest.importorskip("skimage", reason="the extra twostage[proposals] is not installed")


def found(image: Tensor, **options: Any) -> Tensor:
    return SuperpixelsProposals(SuperpixelsConfig(**options)).propose([image])[0].masks


def blocks() -> Tensor:
    """Four quarters of different colours, 40 x 60 pixels."""
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, :20], image[1, :, :30], image[2, 20:, 30:] = 220, 200, 240
    return image


def quarters() -> set[bytes]:
    masks = np.zeros((4, 40, 60), dtype=bool)
    masks[0, :20, :30] = masks[1, :20, 30:] = masks[2, 20:, :30] = masks[3, 20:, 30:] = True
    return {mask.tobytes() for mask in masks}


@pytest.mark.parametrize(
    "options", [{"count": 4, "sigma": 0.0, "compactness": 1.0}, {"method": "felzenszwalb", "sigma": 0.0}]
)
def test_four_blocks_are_four_regions(options: dict[str, Any]) -> None:
    masks = found(blocks(), **options)
    assert {mask.tobytes() for mask in masks.numpy()} == quarters()
    assert [tuple(mask.nonzero()[0].tolist()) for mask in masks] == [(0, 0), (0, 30), (20, 0), (20, 30)]


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (30, 2), (33, 47)])
def test_every_pixel_once(method: str, size_hw: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size_hw), generator=draw).to(torch.uint8)
    masks = found(image, method=method, count=12)
    assert masks.shape[1:] == size_hw
    assert (masks.sum(dim=0) == 1).all()


def test_compact_superpixels_are_squares_and_their_number_is_as_asked() -> None:
    plain = torch.full((3, 60, 80), 128, dtype=torch.uint8)
    masks = found(plain, count=300, compactness=100.0)
    assert 270 <= len(masks) <= 330
    heights, widths = masks.any(dim=2).sum(dim=1).float(), masks.any(dim=1).sum(dim=1).float()
    assert 0.8 < float((heights / widths).mean()) < 1.25


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentError, match=r"pip install 'twostage\[proposals\]'"):
        SuperpixelsProposals(SuperpixelsConfig())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "slik"}, "unknown method 'slik'.*slic"),
        ({"count": 0}, "count must be at least 1"),
        ({"compactness": 0}, "compactness must be above 0"),
        ({"scale": -1}, "scale must be above 0"),
        ({"sigma": -1}, "sigma must not be below 0"),
        ({"min_size": -1}, "min_size must not be below 0"),
    ],
)
def test_options_that_do_not_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ComponentError, match=says):
        SuperpixelsConfig(**options)
