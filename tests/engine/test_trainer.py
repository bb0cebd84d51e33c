"""The loop: exact resume, accumulation, what stops it and what it leaves behind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_task import Batch, ToyTask, make_batches, toy_config

from twostage.config import Config
from twostage.engine import seeding
from twostage.engine.checkpoint import CheckpointError, read_checkpoint
from twostage.engine.trainer import NonFiniteLossError, Trainer
from twostage.errors import TwostageError


def train(config: Config, resume: bool = False, dropout: float = 0.1) -> dict[str, Any]:
    """Trains the toy and returns the final checkpoint's content."""
    torch.manual_seed(len(config.output_dir))  # whatever happened before must not matter
    task = ToyTask(config.solver, dropout)
    return read_checkpoint(Trainer(task, make_batches(config), config).run(resume))


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Bitwise equality of nested tensors and plain data."""
    assert type(first) is type(second), where
    if isinstance(first, Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, Mapping):
        assert set(first) == set(second), where
        for name in first:
            assert_same(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (a, b) in enumerate(zip(first, second, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert first == second, where


def test_five_and_five_are_ten_bitwise(tmp_path: Path) -> None:
    whole = train(toy_config(tmp_path / "whole"))
    halves = toy_config(tmp_path / "halves", "solver.checkpoint_period=5")

    class Cut(Exception):
        pass

    def until_five(start: int) -> Iterator[Batch]:
        yield from itertools.islice(make_batches(halves)(start), 5)
        raise Cut

    with pytest.raises(Cut):
        Trainer(ToyTask(halves.solver), until_five, halves).run()
    assert (tmp_path / "halves" / "last_checkpoint").read_text() == "model_0000004.pth"
    resumed = train(halves, resume=True)
    assert resumed["iteration"] == whole["iteration"] == 9
    for part in ("model", "optimizer", "scheduler", "rng"):
        assert_same(whole[part], resumed[part], part)


def test_dropout_would_notice_another_stream(tmp_path: Path) -> None:
    """The test above can fail: with dropout, another seed gives other weights from the same photos."""
    config = toy_config(tmp_path / "a")
    first = train(config)
    task = ToyTask(config.solver)
    other = toy_config(tmp_path / "b", "seed=1")
    second = read_checkpoint(Trainer(task, make_batches(config), other).run())
    assert not torch.equal(first["model"]["head.weight"], second["model"]["head.weight"])


def test_evaluation_leaves_training_alone(tmp_path: Path) -> None:
    plain = train(toy_config(tmp_path / "plain"))
    config = toy_config(tmp_path / "measured", "test.eval_period=3")
    asked: list[int] = []

    def measure(iteration: int) -> dict[str, float]:
        asked.append(iteration)
        torch.rand(iteration + 1)
        task.module.eval()
        return {"eval/hIoU": 12.5}

    task = ToyTask(config.solver)
    measured = read_checkpoint(Trainer(task, make_batches(config), config, measure).run())
    assert asked == [2, 5, 8, 9]
    assert_same(plain["model"], measured["model"])
    lines = [json.loads(line) for line in (tmp_path / "measured" / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "eval/hIoU" in line] == asked


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulation_equals_the_big_batch(tmp_path: Path, parts: int) -> None:
    whole = train(toy_config(tmp_path / "whole"), dropout=0.0)
    split = train(toy_config(tmp_path / "split", f"solver.accumulation={parts}"), dropout=0.0)
    for name, tensor in whole["model"].items():
        torch.testing.assert_close(split["model"][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_non_finite_loss_stops_before_the_update(tmp_path: Path, parts: int) -> None:
    config = toy_config(tmp_path, f"solver.accumulation={parts}", "solver.checkpoint_period=2")
    task = ToyTask(config.solver)
    task.poison = "photo-3-2"
    snapshots: list[dict[str, Tensor]] = []

    def watched(start: int) -> Iterator[Batch]:
        for batch in make_batches(config)(start):
            snapshots.append({name: tensor.clone() for name, tensor in task.network.state_dict().items()})
            yield batch

    with pytest.raises(NonFiniteLossError) as caught:
        Trainer(task, watched, config).run()
    told = str(caught.value)
    assert "before update 4: loss_abs is inf" in told
    assert "loss_square" not in told
    assert "photo-3-2" in told
    assert ("photo-3-0" in told) == (parts == 1), "only the part of the batch that holds the photo"
    assert_same(dict(task.network.state_dict()), snapshots[3])
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["model_0000001.pth"]


def test_a_non_finite_gradient_stops_too(tmp_path: Path) -> None:
    class Cliff(ToyTask):
        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": (self.network(batch.inputs) * 0.0).sum().sqrt()}  # value 0, slope infinite

    config = toy_config(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"the gradient norm is nan.*photo-0-0"):
        Trainer(Cliff(config.solver), make_batches(config), config).run()


def test_half_precision_learns(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "solver.amp=bf16", "solver.max_iter=30")
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    means = [sum(line["total_loss"] for line in part) / 10 for part in (lines[:10], lines[-10:])]
    assert means[1] < means[0]


def test_periods_and_names_of_checkpoints(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "solver.checkpoint_period=3", "solver.checkpoints_to_keep=2")
    train(config)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000005.pth", "model_0000008.pth", "model_final.pth",
    ]  # fmt: skip


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    assert_same(train(config)["model"], train(config, resume=True)["model"])


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    assert train(toy_config(tmp_path), resume=True)["iteration"] == 9


def test_starts_from_weights(tmp_path: Path) -> None:
    first = train(toy_config(tmp_path / "a"))
    config = toy_config(tmp_path / "b", f"model.weights={tmp_path / 'a' / 'model_final.pth'}")
    task = ToyTask(config.solver)

    def look(start: int) -> Iterator[Batch]:
        assert_same(dict(first["model"]), dict(task.network.state_dict()))
        return make_batches(config)(start)

    Trainer(task, look, config).run()


def test_resume_says_what_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(toy_config(tmp_path))
    train(toy_config(tmp_path, "solver.max_iter=12", "solver.weight_decay=0.5"), resume=True)
    assert "Resuming with another option: SOLVER.MAX_ITER: 10 -> 12" in caplog.text
    assert "Another learning rate schedule from here on: max_iter 10 -> 12" in caplog.text
    optimizer = read_checkpoint(tmp_path / "model_final.pth")["optimizer"]
    assert {g["name"]: g["weight_decay"] for g in optimizer["param_groups"]}["head/weight"] == 0.5


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c: c.pop("optimizer"), "cannot be resumed: it has no optimizer"),
        (
            lambda c: c["optimizer"]["param_groups"][0].update(name="old"),
            "the optimiser trained other parameters",
        ),
        (lambda c: c["model"].pop("head.bias"), "missing: head.bias"),
    ],
)
def test_what_cannot_be_resumed(tmp_path: Path, spoil: Any, told: str) -> None:
    config = toy_config(tmp_path)
    content = train(config)
    spoil(content)
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(CheckpointError, match=told):
        train(config, resume=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["solver.accumulation=5"], "SOLVER.ACCUMULATION: a process has 4 photos .* got 5"),
        (["solver.amp=fp16"], "SOLVER.AMP: fp16 needs a GPU"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path: Path, words: list[str], told: str) -> None:
    config = toy_config(tmp_path, *words)
    with pytest.raises(TwostageError, match=told):
        Trainer(ToyTask(config.solver), make_batches(config), config)


def test_data_that_ends_or_shrinks(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "solver.accumulation=2")
    with pytest.raises(TwostageError, match="The training data ended at update 2"):
        Trainer(ToyTask(config.solver), lambda s: itertools.islice(make_batches(config)(s), 2), config).run()
    with pytest.raises(TwostageError, match="a batch of 1 cannot be worked through in 2 parts"):
        Trainer(ToyTask(config.solver), lambda s: (b[:1] for b in make_batches(config)(s)), config).run()


def test_randomness_comes_back() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seeding.seed_everything(3, rank=1)
    random.gauss(0, 1)
    np.random.randn()
    state = seeding.rng_state()
    first = draw()
    seeding.set_rng_state(state)
    assert draw() == first
    seeding.seed_everything(3, rank=0)
    other = draw()
    seeding.seed_everything(3, rank=0)
    assert draw() == other != first
