"""A task with nothing of segmentation in it: a small network with dropout fits random numbers. Also runs as
a program.

    python toy_task.py OUTPUT_DIR KEY=VALUE...      (options: --resume, --slow, --die-in-save)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twostage.config import Config, SolverConfig, load_config
from twostage.engine import distributed
from twostage.engine.checkpoint import load_strictly
from twostage.engine.events import run_output
from twostage.engine.optimizer import group_parameters
from twostage.engine.signals import TrainingInterrupted
from twostage.engine.trainer import Trainer


@dataclass(frozen=True)
class Batch:
    """inputs: (B, 6); wanted: (B, 2)."""

    inputs: Tensor
    wanted: Tensor
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.inputs[part], self.wanted[part], self.image_ids[part])


class Network(nn.Module):
    """Something with a backbone, a norm, an embedding and dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.query = nn.Embedding(1, 8)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.backbone(inputs)).relu() + self.query.weight
        return self.head(self.dropout(hidden))


class ToyTask:
    """Two terms, both means over the photos."""

    def __init__(self, solver: SolverConfig, dropout: float = 0.1) -> None:
        torch.manual_seed(7)
        self.network = Network(dropout)
        self.solver = solver
        self.poison: str | None = None
        """Image whose second term is infinite."""

    @property
    def module(self) -> nn.Module:
        return self.network

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        error = self.network(batch.inputs) - batch.wanted
        second = 0.1 * error.abs().mean()
        if self.poison in batch.image_ids:
            second = second * float("inf")
        return {"loss_square": error.square().mean(), "loss_abs": second}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return group_parameters(self.network, self.solver)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.network.state_dict(), "vocabulary": {"names": [["cat", "puss"], ["dog"]]}}

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        load_strictly(self.network, state["model"], where)


def make_batches(config: Config, pause: float = 0.0) -> Any:
    """A factory of batches that depend on (seed, iteration) alone; W processes share out what one would
    see.
    """

    def batches(start: int) -> Iterator[Batch]:
        size = config.solver.ims_per_batch
        share, first = size // distributed.world_size(), size // distributed.world_size() * distributed.rank()
        iteration = start
        while True:
            time.sleep(pause)
            generator = torch.Generator().manual_seed(config.seed * 1000 + iteration)
            inputs = torch.randn(size, 6, generator=generator)
            whole = Batch(inputs, inputs[:, :2].sin(), [f"photo-{iteration}-{i}" for i in range(size)])
            yield whole[first : first + share]
            iteration += 1

    return batches


def toy_config(folder: object, *overrides: str) -> Config:
    """A small run that writes to `folder`."""
    small = [
        "solver.ims_per_batch=4",
        "solver.max_iter=10",
        "solver.base_lr=0.01",
        "solver.clip_gradients=1.0",
    ]
    return load_config(None, [*small, "solver.log_period=1", f"output_dir={folder}", *overrides])


def work(config: Config, resume: bool, pause: float, dropout: float) -> int:
    """One process's share of the program."""
    try:
        with run_output(config):
            Trainer(ToyTask(config.solver, dropout), make_batches(config, pause), config).run(resume)
    except TrainingInterrupted as interruption:
        print(interruption, file=sys.stderr)
        return interruption.exit_code
    return 0


def _die_in_save() -> None:
    """Every write to disk from now on kills the process half-way, as a power cut would."""

    def cut(content: object, stream: Any) -> None:
        stream.write(b"half of a checkpoint")
        stream.flush()
        os._exit(9)

    torch.save = cut


def main(words: list[str]) -> int:
    """The program."""
    torch.set_num_threads(1)
    flags = {word for word in words if word.startswith("--")}
    folder, *overrides = [word for word in words if word not in flags]
    if "--die-in-save" in flags:
        _die_in_save()
    pause = 0.05 if "--slow" in flags else 0.0
    dropout = 0.0 if "--no-dropout" in flags else 0.1
    config = toy_config(folder, *overrides)
    return distributed.launch(work, args=(config, "--resume" in flags, pause, dropout))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
