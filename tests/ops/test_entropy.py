"""Entropies against scipy's, temperatures against scipy's root finder and known factors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import entropy

from twostage.ops.entropy import matching_temperature, mean_entropy


def rows(count: int = 30, classes: int = 7, scale: float = 5.0) -> torch.Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_entropy_is_scipys(temperature: float) -> None:
    table = softmax(rows().double().numpy() / temperature, axis=1)
    assert mean_entropy(rows(), temperature) == pytest.approx(float(np.mean(entropy(table, axis=1))))


def test_entropy_at_its_ends() -> None:
    assert mean_entropy(torch.zeros(3, 7)) == pytest.approx(math.log(7))
    assert mean_entropy(torch.tensor([[1e4, 0.0]])) == 0.0
    assert mean_entropy(torch.tensor([[-math.inf, 0.0, 0.0]])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("factor", [0.02, 1.0, 3.0, 250.0])
def test_a_known_factor_is_found(factor: float) -> None:
    found = matching_temperature(factor * rows(), mean_entropy(rows()))
    assert found == pytest.approx(factor, rel=2e-4)


def test_the_temperature_is_the_root_scipy_finds() -> None:
    logits, target = rows(scale=20.0), 0.9
    root = brentq(lambda t: mean_entropy(logits, t) - target, 1e-3, 1e4)
    assert matching_temperature(logits, target) == pytest.approx(root, rel=2e-4)


@pytest.mark.parametrize("target", [-0.1, math.log(7) + 0.01])
def test_an_entropy_that_no_temperature_gives(target: float) -> None:
    with pytest.raises(ValueError, match=r"at most 1\.9459 is possible"):
        matching_temperature(rows(), target)


@pytest.mark.parametrize("shape", [(0, 5), (3, 1), (4,)])
def test_nothing_to_calibrate(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one region and two classes"):
        matching_temperature(torch.zeros(shape), 0.5)
