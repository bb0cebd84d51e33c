"""What a run writes down."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from toy_task import ToyTask, make_batches, toy_config

from twostage.config import parse_config
from twostage.engine.events import Events, run_output
from twostage.engine.trainer import Trainer


def test_files_of_a_run(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "solver.log_period=4")
    with run_output(config) as folder:
        Trainer(ToyTask(config.solver), make_batches(config), config).run()
    assert folder == tmp_path
    assert parse_config((tmp_path / "config.yaml").read_text()) == config
    told = (tmp_path / "log.txt").read_text()
    assert "update 8/10  left: 0:00:0" in told
    assert "photos/s" in told
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [3, 7, 9]
    assert {"total_loss", "loss_square", "loss_abs", "grad_norm", "lr", "time", "data_time"} <= set(lines[0])
    assert lines[0]["total_loss"] == pytest.approx(lines[0]["loss_square"] + lines[0]["loss_abs"])
    assert lines[2]["lr"] == pytest.approx(0.01 * 0.1**0.9)
    assert not logging.getLogger("twostage").handlers, "nothing stays behind"


def test_tensorboard_holds_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = toy_config(tmp_path)
    Trainer(ToyTask(config.solver), make_batches(config), config).run()
    curves = EventAccumulator(str(tmp_path))
    curves.Reload()
    losses = [(point.step, point.value) for point in curves.Scalars("total_loss")]
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [step for step, _ in losses] == list(range(10))
    assert [value for _, value in losses] == pytest.approx([line["total_loss"] for line in lines])


def test_means_of_a_period_and_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates of 1 s and 3 s with 8 photos each, and a pause of 100 s that must not count."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    events = Events(tmp_path, max_iter=10, period=2, start=0)
    now[0] = 1.0
    events.step(0, {"loss": 2.0}, 0.5, 8)
    with events.paused():
        now[0] = 101.0
    now[0] = 104.0
    events.step(1, {"loss": 4.0}, 0.25, 8)
    events.scalars(1, {"mIoU": float("nan")})
    events.close()
    first, second = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert first == {"iteration": 1, "loss": 3.0, "lr": 0.25, "time": 2.0, "photos_per_second": 4.0}
    assert second == {"iteration": 1, "mIoU": None}


def test_a_resumed_run_appends(tmp_path: Path) -> None:
    for stop in (2, 4):
        config = toy_config(tmp_path, f"solver.max_iter={stop}")
        Trainer(ToyTask(config.solver), make_batches(config), config).run(resume=True)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 1, 2, 3]
