"""Groups, learning rates and clipping against arithmetic done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from toy_task import Network

from twostage.config import SolverConfig
from twostage.engine.optimizer import (
    PolySchedule,
    Schedule,
    build_optimizer,
    build_schedule,
    clip_gradients,
    group_parameters,
    trained,
)
from twostage.errors import TwostageError


def test_groups_by_place_and_kind() -> None:
    network = Network(0.0)
    network.backbone_norm = nn.BatchNorm2d(3)
    network.plain = nn.Parameter(torch.zeros(5))  # such as a "no object" vector: decays like a weight
    network.frozen = nn.Linear(2, 2).requires_grad_(False)
    solver = SolverConfig(
        weight_decay=0.3, weight_decay_norm=0.1, weight_decay_embed=0.2, backbone_multiplier=0.5
    )
    found = {group["name"]: group for group in group_parameters(network, solver)}
    expected = {
        "backbone/weight": (0.5, 0.3, {network.backbone.weight, network.backbone.bias}),
        "backbone/norm": (0.5, 0.1, set(network.backbone_norm.parameters())),
        "head/norm": (1.0, 0.1, set(network.norm.parameters())),
        "head/embedding": (1.0, 0.2, {network.query.weight}),
        "head/weight": (1.0, 0.3, {network.head.weight, network.head.bias, network.plain}),
    }
    assert set(found) == set(expected)
    for name, (factor, decay, parameters) in expected.items():
        assert (found[name]["lr_factor"], found[name]["weight_decay"]) == (factor, decay)
        assert set(found[name]["params"]) == parameters


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    [group] = group_parameters(nn.Sequential(first, second), SolverConfig())
    assert len(group["params"]) == 3


def test_adamw_as_in_the_paper() -> None:
    optimizer = build_optimizer(group_parameters(Network(0.0), SolverConfig()), SolverConfig())
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
        assert group["lr"] == pytest.approx(1e-4 * group["lr_factor"])


def test_nothing_to_train() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(TwostageError, match="every parameter is frozen"):
        build_optimizer(group_parameters(frozen, SolverConfig()), SolverConfig())


def test_poly_values_by_hand() -> None:
    solver = SolverConfig(base_lr=2.0, max_iter=4, poly_power=0.9, backbone_multiplier=0.1)
    optimizer = build_optimizer(group_parameters(Network(0.0), solver), solver)
    schedule = PolySchedule(optimizer, solver)
    for iteration, left in enumerate((1.0, 0.75, 0.5, 0.25)):
        assert schedule.set(iteration) == pytest.approx(2.0 * left**0.9)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(2.0 * left**0.9 * group["lr_factor"])
    assert schedule.factor(4) == 0.0
    assert schedule.factor(1) == pytest.approx(0.7719, abs=5e-5)  # 0.75 ** 0.9, from a pocket calculator


def test_warm_up_by_hand() -> None:
    solver = SolverConfig(base_lr=1.0, max_iter=8, poly_power=1.0, warmup_iters=4, warmup_factor=0.2)
    schedule = PolySchedule(build_optimizer(group_parameters(Network(0.0), solver), solver), solver)
    rises = (0.2, 0.4, 0.6, 0.8, 1.0, 1.0)
    falls = (1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8)
    assert [schedule.factor(i) for i in range(6)] == pytest.approx(
        [a * b for a, b in zip(rises, falls, strict=True)]
    )


def test_clips_all_parameters_together() -> None:
    """One norm for the whole model (sqrt(3^2 + 4^2) = 5), not one for each parameter, group or device."""
    solver = SolverConfig()
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    groups = [{"name": "a", "params": [first]}, {"name": "b", "params": [second]}]
    optimizer = build_optimizer(groups, solver)
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    norm = clip_gradients(trained(optimizer), 0.01)
    assert float(norm) == pytest.approx(5.0)
    assert first.grad.tolist() == pytest.approx([0.006], rel=1e-4)
    assert second.grad.tolist() == pytest.approx([0.0, 0.008], rel=1e-4)


@pytest.mark.parametrize("limit", [0.0, 6.0])
def test_small_gradients_and_no_limit_stay(limit: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert math.isclose(float(clip_gradients([parameter], limit)), 5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]


def test_sgd_and_cosine_by_hand() -> None:
    """Two steps of one number with momentum and decay, at rates that a pocket calculator gives."""
    solver = SolverConfig(
        optimizer="sgd", momentum=0.5, base_lr=0.1, weight_decay=0.01, schedule="cosine", max_iter=4
    )
    number = nn.Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer([{"name": "a", "params": [number], "weight_decay": 0.01}], solver)
    assert isinstance(optimizer, torch.optim.SGD)
    schedule = build_schedule(optimizer, solver)
    assert [schedule.factor(i) for i in range(5)] == pytest.approx(
        [1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6
    )
    expected, speed = 2.0, 0.0
    for iteration, rate in enumerate((0.1, 0.0853553)):
        assert schedule.set(iteration) == pytest.approx(rate)
        number.grad = torch.tensor([3.0])
        optimizer.step()
        speed = 0.5 * speed + 3.0 + 0.01 * expected
        expected -= rate * speed
        assert number.item() == pytest.approx(expected, rel=1e-5)


def test_constant_warm_up_as_prompts_are_learned() -> None:
    solver = SolverConfig(
        base_lr=0.02,
        schedule="cosine",
        max_iter=16000,
        warmup_iters=100,
        warmup_factor=0.005,
        warmup_method="constant",
    )
    schedule = build_schedule(build_optimizer(group_parameters(Network(0.0), solver), solver), solver)
    assert schedule.set(0) == pytest.approx(1e-4)
    assert schedule.set(99) == pytest.approx(1e-4, rel=1e-3)
    assert schedule.set(100) == pytest.approx(0.02, rel=1e-3)
    assert schedule.set(8000) == pytest.approx(0.01)
    assert schedule.set(16000) == pytest.approx(0.0, abs=1e-9)


def test_changes_of_the_schedule_are_told() -> None:
    def made(solver: SolverConfig) -> Schedule:
        return build_schedule(build_optimizer(group_parameters(Network(0.0), solver), solver), solver)

    poly, cosine = made(SolverConfig()), made(SolverConfig(schedule="cosine"))
    assert isinstance(poly, PolySchedule)
    assert poly.changes(poly.state_dict()) == []
    assert cosine.changes(poly.state_dict()) == ["schedule None -> cosine"]
    assert poly.changes(cosine.state_dict()) == ["power None -> 0.9"]
    rising = made(SolverConfig(warmup_method="constant"))
    assert rising.changes(poly.state_dict()) == ["warmup_method None -> constant"]
