"""Runs with SGD and a cosine: exact resume, and no resume from the other optimiser's moments."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_task import Batch, ToyTask, make_batches, toy_config

from twostage.engine.checkpoint import CheckpointError, read_checkpoint
from twostage.engine.trainer import Trainer

OPTIONS = (
    "solver.optimizer=sgd",
    "solver.schedule=cosine",
    "solver.warmup_iters=2",
    "solver.weight_decay=5e-4",
)


class Cut(Exception):
    """The run was ended in the middle."""


def test_five_and_five_are_ten_bitwise_with_sgd(tmp_path: Path) -> None:
    config = toy_config(tmp_path / "whole", *OPTIONS)
    whole = read_checkpoint(Trainer(ToyTask(config.solver), make_batches(config), config).run())
    halves = toy_config(tmp_path / "halves", *OPTIONS, "solver.checkpoint_period=5")

    def until_five(start: int) -> Iterator[Batch]:
        yield from itertools.islice(make_batches(halves)(start), 5)
        raise Cut

    with pytest.raises(Cut):
        Trainer(ToyTask(halves.solver), until_five, halves).run()
    task = ToyTask(halves.solver)
    resumed = read_checkpoint(Trainer(task, make_batches(halves), halves).run(resume=True))
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name


def test_another_optimizer_cannot_resume(tmp_path: Path) -> None:
    first = toy_config(tmp_path)
    Trainer(ToyTask(first.solver), make_batches(first), first).run()
    other = toy_config(tmp_path, *OPTIONS, "solver.max_iter=12")
    with pytest.raises(CheckpointError, match=r"another SOLVER.OPTIMIZER than sgd"):
        Trainer(ToyTask(other.solver), make_batches(other), other).run(resume=True)


def test_a_resumed_run_takes_the_momentum_of_its_configuration(tmp_path: Path) -> None:
    first = toy_config(tmp_path, *OPTIONS)
    Trainer(ToyTask(first.solver), make_batches(first), first).run()
    other = toy_config(tmp_path, *OPTIONS, "solver.momentum=0.5", "solver.max_iter=11")
    again = Trainer(ToyTask(other.solver), make_batches(other), other)
    again.run(resume=True)
    assert {group["momentum"] for group in again.state.optimizer.param_groups} == {0.5}
