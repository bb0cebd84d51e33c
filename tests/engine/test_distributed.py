"""Several processes equal one with the same global batch, and end as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_task import ToyTask, make_batches, toy_config

from twostage.config import load_config
from twostage.engine import distributed
from twostage.engine.checkpoint import read_checkpoint
from twostage.engine.trainer import Trainer


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Gradients of the two shares are averaged: same photos, same weights up to rounding (no dropout)."""
    script = str(Path(__file__).with_name("toy_task.py"))
    words = ["--no-dropout", "solver.max_iter=4", "solver.accumulation=2"]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(distributed._free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *address, script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, str(tmp_path / "two"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    one = toy_config(tmp_path / "one", "solver.max_iter=4")
    expected = read_checkpoint(Trainer(ToyTask(one.solver, 0.0), make_batches(one), one).run())
    got = read_checkpoint(tmp_path / "two" / "model_final.pth")
    for name, tensor in expected["model"].items():
        torch.testing.assert_close(got["model"][name], tensor, rtol=1e-4, atol=1e-5)
    assert len(got["rng"]) == 2, "one stream a process"
    assert (tmp_path / "two" / "log.txt").read_text().count("update 4/4") == 1, "one process speaks"
    other = toy_config(tmp_path / "two", "solver.max_iter=5")
    assert Trainer(ToyTask(other.solver), make_batches(other), other).run(resume=True).is_file()


def status_of_rank(first: int) -> int:
    """What the spawned processes below do: agree on something, then end with different statuses."""
    gathered = distributed.all_gather_object(distributed.rank() + first)
    worst = distributed.highest(distributed.rank(), torch.device("cpu"))
    distributed.barrier()
    agreed = gathered == [first, first + 1] and worst == 1 and distributed.world_size() == 2
    return 5 if agreed and not distributed.is_main() else 0


@pytest.mark.slow
def test_spawned_processes_talk_and_report_failure() -> None:
    url = f"tcp://127.0.0.1:{distributed._free_port()}"
    assert distributed._spawn(2, (status_of_rank, 2, 2, 0, url, (10,))) == 5


def test_one_process_needs_no_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert distributed.launch(lambda number: number, args=(7,)) == 7
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather_object("x") == ["x"]
    assert distributed.highest(3, torch.device("cpu")) == 3
    distributed.barrier()


def test_batches_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    config = load_config(None, ["solver.ims_per_batch=4"])
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH: 3 processes cannot share 4 evenly"):
        Trainer(ToyTask(config.solver), make_batches(config), config)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.pick_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.pick_device("auto").type == "cpu"
    with pytest.raises(distributed.LaunchError, match="torch finds no GPU"):
        distributed.pick_device("cuda")
