"""Outliers, neighbour means and averages of like places against loops written from their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.alike import cosines, filled, mean_of_alike
from twostage.ops.outliers import class_over_self, highest, local_outlier_factor, squared_distances


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_distances_survive_a_large_common_part() -> None:
    """Three channels of size 1000 on all points: differences of 1 are still seen."""
    where = points(1, 60, 32)
    where[..., :3] += 1000
    expected = torch.from_numpy(cdist(where[0].double(), where[0].double(), "sqeuclidean")).float()
    torch.testing.assert_close(squared_distances(where)[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("count", "k"), [(80, 30), (32, 30), (31, 15), (12, 5), (3, 1), (2, 1)])
def test_local_outlier_factor(count: int, k: int) -> None:
    """k: 30 where there are more than 30 others, else half of them."""
    batch = points(2, count, 8)
    got = local_outlier_factor(batch)
    for image, scores in zip(batch.double(), got, strict=True):
        order = []
        for i in range(count):
            others = [(float(((image[i] - image[j]) ** 2).sum()), j) for j in range(count) if j != i]
            order.append(sorted(others)[:k])
        for i in range(count):
            reach = order[i][-1][0]
            expected = reach * sum(1 / order[j][-1][0] for _, j in order[i]) / k
            assert math.isclose(scores[i], expected, rel_tol=1e-4)


def test_few_points_have_one_outlier() -> None:
    """No tie at the top, which rounding would decide."""
    for count in range(4, 32):
        found = highest(local_outlier_factor(points(1, count, 6, seed=count)), 0.05)
        assert found.sum() == (1 if count < 22 else 2), count


def test_the_far_point_has_the_highest_factor() -> None:
    cloud = points(1, 50, 4)
    cloud[0, 17] += 40
    scores = local_outlier_factor(cloud)
    assert scores[0].argmax() == 17
    assert highest(scores, 0.02)[0].nonzero().flatten().tolist() == [17]


def test_equal_points_and_single_points_stay_finite() -> None:
    assert local_outlier_factor(torch.zeros(1, 40, 4)).isfinite().all()
    assert local_outlier_factor(torch.zeros(2, 1, 4)).tolist() == [[1.0], [1.0]]
    assert not highest(torch.ones(2, 1), 0.05).any()


def test_half_precision_is_compared_in_single() -> None:
    batch = points(1, 40, 8).bfloat16()
    assert local_outlier_factor(batch).dtype == torch.float32
    torch.testing.assert_close(local_outlier_factor(batch), local_outlier_factor(batch.float()))


def test_no_neighbours_are_refused() -> None:
    with pytest.raises(TwostageError, match="at least one neighbour, got 0"):
        local_outlier_factor(torch.zeros(1, 4, 2), 0)


def test_highest_is_per_image() -> None:
    scores = torch.stack([torch.arange(100.0), torch.arange(100.0, 0, -1)])
    found = highest(scores, 0.05)
    assert found[0].nonzero().flatten().tolist() == [95, 96, 97, 98, 99]
    assert found[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_class_over_self() -> None:
    looked = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.1, 0.1, 0.1, 0.1]])
    itself = torch.tensor([[0.0, 0.5, 0.9, 0.1], [0.9, 0.9, 0.9, 0.9]])
    assert class_over_self(looked, itself, 1.5, 10).tolist() == [[True, True, False, True], [False] * 4]
    assert class_over_self(looked, itself, 1.5, 2).tolist() == [[False, True, False, True], [False] * 4]
    assert class_over_self(looked, itself, 0.5, 10).tolist() == [[True, False, False, False], [False] * 4]


@pytest.mark.parametrize("grid", [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_filled_with_the_mean_of_sound_neighbours(grid: tuple[int, int]) -> None:
    h, w = grid
    tokens = points(2, h * w, 3)
    holes = torch.rand(2, h * w, generator=torch.Generator().manual_seed(1)) < 0.6
    got = filled(tokens, holes, grid)
    for b in range(2):
        for row in range(h):
            for column in range(w):
                place = row * w + column
                if not holes[b, place]:
                    assert torch.equal(got[b, place], tokens[b, place])
                    continue
                around = [
                    tokens[b, y * w + x]
                    for y in range(max(0, row - 1), min(h, row + 2))
                    for x in range(max(0, column - 1), min(w, column + 2))
                    if not holes[b, y * w + x]
                ]
                expected = torch.stack(around).mean(dim=0) if around else torch.zeros(3)
                torch.testing.assert_close(got[b, place], expected, rtol=1e-5, atol=1e-6)


def test_mean_of_alike() -> None:
    tokens, source = points(2, 9, 4), points(2, 9, 3, seed=1)
    got = mean_of_alike(tokens, cosines(source), 0.4)
    for b in range(2):
        for i in range(9):
            total, weights = torch.zeros(4), 1e-6
            for j in range(9):
                a, c = source[b, i], source[b, j]
                alike = float(a @ c / (a.norm() * c.norm()))
                if alike >= 0.4:
                    total, weights = total + alike * tokens[b, j], weights + alike
            torch.testing.assert_close(got[b, i], total / weights, rtol=1e-5, atol=1e-5)
    assert mean_of_alike(tokens.bfloat16(), cosines(source), 0.4).dtype == torch.bfloat16
