"""Selective search against a slow version that looks at every pair of regions at every step."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import rgb2hsv
from skimage.feature import local_binary_pattern
from skimage.segmentation import felzenszwalb

from twostage.data.shapes.dataset import ShapesDataset
from twostage.proposals import selective_search as module
from twostage.proposals.selective_search import SelectiveSearchConfig, SelectiveSearchProposals
from twostage.registry import ComponentError


def scene(index: int, step: int = 2) -> NDArray[np.uint8]:
    """A drawn scene with every second pixel, (H, W, 3)."""
    image = ShapesDataset("val")[index].image[:, ::step, ::step]
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def slow_partition(rgb: NDArray[np.uint8], config: SelectiveSearchConfig) -> tuple[NDArray[np.int64], int]:
    """All regions as sets of pixels; features are counted anew for each, from its pixels. Also the number of
    start segments.
    """
    hsv = np.rint(rgb2hsv(rgb) * 255).astype(np.uint8)
    start = felzenszwalb(hsv, scale=config.scale, sigma=config.sigma, min_size=config.min_size)
    height, width = start.shape
    patterns = np.stack([local_binary_pattern(hsv[:, :, c], 24, 3) for c in range(3)], axis=2)
    regions = {int(k): {(int(y), int(x)) for y, x in np.argwhere(start == k)} for k in np.unique(start)}

    def histogram(
        region: set[tuple[int, int]], values: NDArray, bins: int, top: float
    ) -> NDArray[np.float64]:
        rows, columns = np.array(sorted(region)).T
        found = [
            np.histogram(values[rows, columns, c].astype(float), bins=bins, range=(0, top))[0]
            for c in range(3)
        ]
        joined = np.concatenate(found).astype(float)
        return joined / joined.sum()

    def similarity(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
        both = np.array(sorted(one | other))
        box = np.prod(both.max(axis=0) - both.min(axis=0) + 1)
        area = height * width
        color = np.minimum(*(histogram(r, hsv, config.color_bins, 256) for r in (one, other))).sum()
        texture = np.minimum(
            *(histogram(r, patterns, config.texture_bins, 2**24) for r in (one, other))
        ).sum()
        return float((1 - len(both) / area + color + texture + 1 - (box - len(both)) / area) / 4)

    def touch(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> bool:
        return any((y + dy, x + dx) in other for y, x in one for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))

    first_count, known = len(regions), dict[tuple[int, int], float]()
    while True:
        for a, b in combinations(sorted(regions), 2):
            if (a, b) not in known:
                known[a, b] = similarity(regions[a], regions[b]) if touch(regions[a], regions[b]) else -1.0
        alive = {pair: value for pair, value in known.items() if pair[0] in regions and pair[1] in regions}
        if not alive or max(alive.values()) < config.similarity:
            break
        a, b = max(alive, key=lambda pair: alive[pair])
        regions[max(regions) + 1 + len(known)] = regions.pop(a) | regions.pop(b)
    labels = np.zeros((height, width), np.int64)
    for number, region in enumerate(sorted(regions.values(), key=min)):
        for y, x in region:
            labels[y, x] = number
    return labels, first_count


@pytest.mark.parametrize("similarity", [0.65, 0.8])
@pytest.mark.parametrize("index", [0, 2, 7])
def test_the_same_partition_as_the_slow_way(index: int, similarity: float) -> None:
    config = SelectiveSearchConfig(min_size=25, similarity=similarity)
    rgb = scene(index)
    expected, started = slow_partition(rgb, config)
    got = SelectiveSearchProposals(config).partition(rgb)
    assert started > expected.max() + 1, "a picture where nothing is merged would prove nothing"
    np.testing.assert_array_equal(got, expected)


def test_masks_are_a_partition() -> None:
    image = ShapesDataset("val")[3].image
    found = SelectiveSearchProposals(SelectiveSearchConfig(min_size=60)).propose([image])[0]
    assert found.masks.dtype == torch.bool
    assert bool((found.masks.sum(dim=0) == 1).all())
    first = [int(mask.flatten().int().argmax()) for mask in found.masks]
    assert first == sorted(first)
    assert len(found) > 2


def test_two_halves() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[0, :, :25] = 220
    image[2, :, 25:] = 220
    masks = SelectiveSearchProposals(SelectiveSearchConfig(min_size=20)).propose([image])[0].masks
    assert len(masks) == 2
    assert bool(masks[0, :, :25].all())
    assert bool(masks[1, :, 25:].all())


def test_small_photos_keep_segments() -> None:
    """1000 pixels are a third of a per cent of a photo, but nearly all of a small picture."""
    rgb = scene(0)
    whole = SelectiveSearchProposals(SelectiveSearchConfig()).partition(rgb)
    share = SelectiveSearchProposals(SelectiveSearchConfig(min_share=1000 / (480 * 640))).partition(rgb)
    assert whole.max() < share.max()
    by_hand = SelectiveSearchConfig(min_size=round(rgb.shape[0] * rgb.shape[1] * 1000 / (480 * 640)))
    np.testing.assert_array_equal(share, SelectiveSearchProposals(by_hand).partition(rgb))


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (5, 2)])
def test_pictures_of_next_to_nothing(size_hw: tuple[int, int]) -> None:
    image = torch.full((3, *size_hw), 7, dtype=torch.uint8)
    masks = SelectiveSearchProposals(SelectiveSearchConfig()).propose([image])[0].masks
    assert masks.shape == (1, *size_hw)
    assert bool(masks.all())


def test_grey_pictures() -> None:
    grey = ShapesDataset("val")[4].image.float().mean(dim=0, keepdim=True).byte().expand(3, -1, -1)
    masks = (
        SelectiveSearchProposals(SelectiveSearchConfig(min_size=60, similarity=0.9)).propose([grey])[0].masks
    )
    assert len(masks) > 1
    assert bool((masks.sum(dim=0) == 1).all())


@pytest.mark.parametrize("wrong", [{"similarity": 1.2}, {"min_share": -0.1}, {"color_bins": 0}])
def test_unfit_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ComponentError, match=f"{next(iter(wrong))} must lie in"):
        SelectiveSearchConfig(**wrong)


def test_unfit_pictures() -> None:
    with pytest.raises(ComponentError, match=r"image 0 should be RGB uint8 \(3, H, W\), got \(1, 4, 4\)"):
        SelectiveSearchProposals.tiny().propose([torch.zeros(1, 4, 4, dtype=torch.uint8)])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentError, match=r"pip install 'twostage\[proposals\]'"):
        SelectiveSearchProposals(SelectiveSearchConfig())
