"""Ctrl-C and SIGTERM: the step is finished, the state saved, and the run goes on as if nothing had
happened.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_task import Batch, ToyTask, make_batches, toy_config

from twostage.engine.checkpoint import read_checkpoint
from twostage.engine.signals import StopSignals, TrainingInterrupted
from twostage.engine.trainer import Trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_step_saves_and_resumes_exactly(tmp_path: Path, number: signal.Signals) -> None:
    config, whole = toy_config(tmp_path / "cut"), toy_config(tmp_path / "whole")
    before = signal.getsignal(number)

    def interrupted(start: int) -> Iterator[Batch]:
        for iteration, batch in enumerate(make_batches(config)(start)):
            if iteration == 3:
                os.kill(os.getpid(), number)
            yield batch

    with pytest.raises(TrainingInterrupted, match=r"model_0000003\.pth. Go on with --resume") as caught:
        Trainer(ToyTask(config.solver), interrupted, config).run()
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before, "the handlers are given back"
    resumed = Trainer(ToyTask(config.solver), make_batches(config), config).run(resume=True)
    expected = Trainer(ToyTask(whole.solver), make_batches(whole), whole).run()
    weights = read_checkpoint(expected)["model"]
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in read_checkpoint(resumed)["model"].items()
    )


def test_readers_that_die_of_the_same_signal(tmp_path: Path) -> None:
    """Ctrl-C reaches the reading processes as well; what they raise then must not cost the state."""
    config = toy_config(tmp_path)

    def dies(start: int) -> Iterator[Batch]:
        for iteration, batch in enumerate(make_batches(config)(start)):
            if iteration == 2:
                os.kill(os.getpid(), signal.SIGINT)
                raise RuntimeError("DataLoader worker exited unexpectedly")
            yield batch

    with pytest.raises(TrainingInterrupted, match=r"model_0000001\.pth"):
        Trainer(ToyTask(config.solver), dies, config).run()
    assert read_checkpoint(tmp_path / "model_0000001.pth")["iteration"] == 1


def test_twice_stops_at_once() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_on_the_program(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("toy_task.py"))
    words = [sys.executable, script, str(tmp_path), "solver.max_iter=100000", "--slow"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "metrics.json"
    limit = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2) and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Interrupted: the state is saved in" in told
    assert "Traceback" not in told
    saved = read_checkpoint(tmp_path / (tmp_path / "last_checkpoint").read_text())
    assert saved["iteration"] >= 2
