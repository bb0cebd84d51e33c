"""Pixel-adaptive refinement against recorded numbers, the formula pixel by pixel, and cases known by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops import pamr as module
from twostage.ops.pamr import affinity, pamr


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slowly(image: Tensor, maps: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    """One image, (C, H, W) and (K, H, W): every number of the formula on its own."""
    channels, height, width = image.shape
    weights: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    for y in range(height):
        for x in range(width):
            places, every = [], []
            for step in dilations:
                for down in (-1, 0, 1):
                    for across in (-1, 0, 1):
                        row = min(max(y + step * down, 0), height - 1)
                        column = min(max(x + step * across, 0), width - 1)
                        every.append((row, column))
                        if (down, across) != (0, 0):
                            places.append((row, column))
            logits = [0.0] * len(places)
            for c in range(channels):
                values = [float(image[c, row, column]) for row, column in every]
                mean = sum(values) / len(values)
                std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
                for n, (row, column) in enumerate(places):
                    apart = abs(float(image[c, y, x]) - float(image[c, row, column]))
                    logits[n] -= apart / (1e-8 + 0.1 * std) / channels
            total = sum(math.exp(one) for one in logits)
            weights[y, x] = [
                (row, column, math.exp(one) / total)
                for (row, column), one in zip(places, logits, strict=True)
            ]
    for _ in range(iterations):
        before, maps = maps, torch.zeros_like(maps)
        for (y, x), around in weights.items():
            for row, column, weight in around:
                maps[:, y, x] += weight * before[:, row, column]
    return maps


@pytest.mark.golden
@pytest.mark.parametrize("size", ["small", "one_step"])
def test_recorded(size: str) -> None:
    record = rec.case("pamr", size)
    options: dict[str, Any] = record["options"]
    inputs = rec.records().inputs
    image = torch.from_numpy(inputs.image(tuple(options["hw"])))
    maps = torch.from_numpy(inputs.logit_map(options["classes"], *options["hw"]))
    rec.compare(record, "map", pamr(image, maps, options["iterations"], options["dilations"]))


@pytest.mark.parametrize(
    ("size", "iterations", "dilations"),
    [((5, 7), 2, (1,)), ((6, 4), 3, (1, 2)), ((3, 3), 1, (8, 16)), ((1, 4), 2, (1, 3))],
)
def test_pixel_by_pixel(size: tuple[int, int], iterations: int, dilations: tuple[int, ...]) -> None:
    image, maps = draw(2, 3, *size), draw(2, 4, *size, seed=1)
    got = pamr(image, maps, iterations, dilations)
    for one in range(2):
        expected = slowly(image[one], maps[one], iterations, dilations)
        torch.testing.assert_close(got[one], expected, rtol=1e-4, atol=1e-5)


def test_an_even_photo_is_a_plain_mean() -> None:
    """Without colour every neighbour counts the same; the pixel itself does not."""
    maps = draw(1, 1, 9, 9)
    got = pamr(torch.full((1, 3, 9, 9), 0.3), maps, 1, (1,))
    around = F.conv2d(F.pad(maps, (1,) * 4, mode="replicate"), torch.ones(1, 1, 3, 3))
    torch.testing.assert_close(got, (around - maps) / 8, rtol=1e-5, atol=1e-6)


def test_an_edge_holds() -> None:
    """Black against white: labels that leak over the edge are drawn back to it."""
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6:] = 1
    maps = torch.zeros(1, 2, 12, 12)
    maps[:, 0, :, :8] = 1
    maps[:, 1, :, 8:] = 1
    got = pamr(image, maps, 60, (1, 2))
    assert torch.equal(got[0].argmax(0), image[0, 0].long())


def test_units_of_the_photo_do_not_matter() -> None:
    image, maps = draw(1, 3, 8, 8), draw(1, 2, 8, 8, seed=1)
    scaled = image * torch.tensor([3.0, 0.5, 70.0])[:, None, None] + 4
    torch.testing.assert_close(pamr(scaled, maps), pamr(image, maps), rtol=1e-3, atol=1e-4)


def test_maps_are_brought_to_the_photo_with_corners_aligned() -> None:
    image, maps = draw(1, 3, 12, 10), draw(1, 2, 3, 4, seed=1)
    large = F.interpolate(maps, size=(12, 10), mode="bilinear", align_corners=True)
    assert torch.equal(pamr(image, maps, 0), large)
    assert torch.equal(pamr(image, maps, 3), pamr(image, large, 3))


def test_smallest_cases() -> None:
    one = torch.tensor([[[[2.5]]]])
    torch.testing.assert_close(pamr(torch.ones(1, 3, 1, 1), one), one)
    even = torch.full((1, 1, 6, 6), 0.7)
    torch.testing.assert_close(pamr(draw(1, 3, 6, 6), even), even)


def test_neighbours_shares_sum_to_one() -> None:
    shares = affinity(draw(2, 3, 7, 5), (1, 4))
    assert shares.shape == (2, 16, 7, 5)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 7, 5))


def test_parts_make_the_same_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image, maps = draw(2, 3, 8, 6), draw(2, 7, 8, 6, seed=1)
    whole = pamr(image, maps)
    monkeypatch.setattr(module, "AT_ONCE", 2 * 8 * 6 * 2)
    assert torch.equal(pamr(image, maps), whole)


@pytest.mark.parametrize(
    ("options", "images", "words"),
    [
        ({"dilations": ()}, 1, "expected dilations of 1 pixel or more"),
        ({"dilations": (8, 0)}, 1, r"got \(8, 0\)"),
        ({"iterations": -1}, 1, "iterations must be at least 0, got -1"),
        ({}, 2, "expected maps of 2 images, got 1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], images: int, words: str) -> None:
    with pytest.raises(TwostageError, match=words):
        pamr(draw(images, 3, 4, 4), draw(1, 2, 4, 4), **options)
