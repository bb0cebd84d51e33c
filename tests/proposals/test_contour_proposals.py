"""Contours: the merging against scikit-image's own, strengths of known steps, nested levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import graph

from twostage.data.shapes.dataset import ShapesDataset
from twostage.proposals import _hierarchy as hierarchy
from twostage.proposals import contours as module
from twostage.proposals.contours import ContoursConfig, ContoursProposals, boundary_strength
from twostage.registry import ComponentError


def scene(index: int) -> NDArray[np.uint8]:
    image = ShapesDataset("val")[index].image[:, ::2, ::2]
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def slow_borders(labels: NDArray, strength: NDArray) -> dict[tuple[int, int], list[float]]:
    """Every pair of neighbouring pixels of two regions, one by one."""
    found: dict[tuple[int, int], list[float]] = {}
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < height and u < width and labels[y, x] != labels[v, u]:
                    pair = (int(min(labels[y, x], labels[v, u])), int(max(labels[y, x], labels[v, u])))
                    found.setdefault(pair, []).append(float(strength[y, x] + strength[v, u]) / 2)
    return found


def slow_merging(labels: NDArray, strength: NDArray, level: float) -> NDArray:
    """The same by scikit-image's merge_hierarchical on a graph of networkx."""
    rag = graph.RAG()
    rag.add_nodes_from((int(k), {"labels": [int(k)]}) for k in np.unique(labels))
    for (a, b), values in slow_borders(labels, strength).items():
        rag.add_edge(a, b, weight=float(np.mean(values)), count=len(values))

    def joined(rag: Any, source: int, target: int, neighbour: int) -> dict[str, float]:
        parts = [rag[node][neighbour] for node in (source, target) if rag.has_edge(node, neighbour)]
        count = sum(part["count"] for part in parts)
        return {"count": count, "weight": sum(part["count"] * part["weight"] for part in parts) / count}

    return graph.merge_hierarchical(
        labels, rag, level, rag_copy=True, in_place_merge=True, merge_func=lambda *_: None, weight_func=joined
    )


@pytest.mark.parametrize("level", [0.08, 0.3])
@pytest.mark.parametrize("index", [0, 4])
def test_merging_is_that_of_scikit_image(index: int, level: float) -> None:
    rgb = scene(index)
    strength = boundary_strength(rgb, (1.0,))
    generator = ContoursProposals(ContoursConfig(scales=(1.0,), min_area=0))
    start, tree = generator.hierarchy(rgb)
    got = hierarchy.in_reading_order(tree.at(level)[start])
    expected = hierarchy.in_reading_order(slow_merging(start, strength, level))
    assert 1 < expected.max() < start.max()
    np.testing.assert_array_equal(got, expected)


def test_borders_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    labels = hierarchy.in_reading_order(draw.integers(0, 6, (9, 7)))
    strength = draw.random((9, 7))
    found = hierarchy.borders(labels, strength)
    expected = slow_borders(labels, strength)
    assert {(a, b) for a, b in found.pairs.tolist()} == set(expected)
    for (a, b), length, total in zip(found.pairs.tolist(), found.length, found.total, strict=True):
        assert length == len(expected[a, b])
        assert total == pytest.approx(sum(expected[a, b]))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_strength_is_the_height_of_the_step(scale: float) -> None:
    """Black to white is 1; half the way in CIELAB's lightness is a half; flat is nothing."""
    for grey, height in ((255, 1.0), (119, 0.5)):  # sRGB 119 has the lightness 50
        rgb = np.zeros((30, 40, 3), np.uint8)
        rgb[:, 20:] = grey
        strength = boundary_strength(rgb, (scale,), texture=0)
        assert strength[15, 19:21].max() == pytest.approx(height, abs=0.12)
        assert strength[:, :5].max() < 0.01


def test_two_halves_and_a_faint_square() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    image[:, :, 30:] = 230
    image[:, 10:26, 38:54] = 200
    coarse = ContoursProposals(ContoursConfig(levels=(0.3,))).propose([image])[0]
    assert len(coarse) == 2
    assert bool((coarse.masks.sum(dim=0) == 1).all())
    assert int(coarse.masks[0].sum()) == pytest.approx(40 * 30, abs=60)
    fine = ContoursProposals(ContoursConfig(levels=(0.05, 0.3))).propose([image])[0]
    square = torch.zeros(40, 60, dtype=torch.bool)
    square[10:26, 38:54] = True
    best = max(float((m & square).sum() / (m | square).sum()) for m in fine.masks)
    assert best > 0.8


def test_levels_are_nested_and_scores_say_when_a_region_ends() -> None:
    rgb = ShapesDataset("val")[4].image
    levels = (0.1, 0.25, 0.5)
    found = ContoursProposals(ContoursConfig(levels=levels)).propose([rgb])[0]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    unique = {tuple(mask.flatten().nonzero()[:, 0].tolist()) for mask in found.masks}
    assert len(unique) == len(found), "a region of two levels is given once"
    for one in found.masks:
        for other in found.masks:
            both = int((one & other).sum())
            assert both in (0, int(one.sum()), int(other.sum()))
    for level in levels:
        single = ContoursProposals(ContoursConfig(levels=(level,))).propose([rgb])[0]
        assert bool((single.masks.sum(dim=0) == 1).all())
        assert {tuple(m.flatten().nonzero()[:, 0].tolist()) for m in single.masks} <= unique
        assert float(single.scores.min()) > level
    few = ContoursProposals(ContoursConfig(levels=levels, max_masks=3)).propose([rgb])[0]
    assert torch.equal(few.masks, found.masks[:3])


def test_no_region_is_smaller_than_asked() -> None:
    image = ShapesDataset("val")[5].image
    found = ContoursProposals(ContoursConfig(levels=(0.02,), min_area=70)).propose([image])[0]
    assert int(found.masks.flatten(1).sum(dim=1).min()) >= 70


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (5, 2)])
def test_pictures_of_next_to_nothing(size_hw: tuple[int, int]) -> None:
    image = torch.full((3, *size_hw), 7, dtype=torch.uint8)
    for levels in ((0.2,), (0.1, 0.3)):
        found = ContoursProposals(ContoursConfig(levels=levels)).propose([image])[0]
        assert found.masks.shape == (1, *size_hw)
        assert bool(found.masks.all())
        assert found.scores.tolist() == [1.0]


def test_grey_pictures() -> None:
    grey = ShapesDataset("val")[4].image.float().mean(dim=0, keepdim=True).byte().expand(3, -1, -1)
    masks = ContoursProposals(ContoursConfig()).propose([grey])[0].masks
    assert len(masks) > 1
    assert bool((masks.sum(dim=0) == 1).all())


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"levels": ()}, "levels must be one or more"),
        ({"levels": (1.5,)}, "levels must be one or more"),
        ({"scales": (0.0,)}, "scales must be one or more"),
        ({"min_area": -1}, "min_area must not be negative"),
    ],
)
def test_unfit_options(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(ComponentError, match=word):
        ContoursConfig(**wrong)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentError, match=r"pip install 'twostage\[proposals\]'"):
        ContoursProposals(ContoursConfig())
