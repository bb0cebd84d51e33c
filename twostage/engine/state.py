"""Everything a run has to remember between updates, saved and put back as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import twostage
from twostage.config import Config, diff_configs, dump_config, parse_config
from twostage.engine import distributed
from twostage.engine.checkpoint import Checkpointer, CheckpointError, read_checkpoint
from twostage.engine.optimizer import build_optimizer, build_schedule
from twostage.engine.seeding import rng_state, set_rng_state
from twostage.interfaces import Task

log = logging.getLogger(__name__)

ReadWeights = Callable[[str], Mapping[str, Any]]

_NEEDED = ("optimizer", "scheduler", "scaler", "iteration", "rng", "config")


class RunState:
    """Task, optimiser, schedule and gradient scaler of one run, and the checkpoints that hold them."""

    def __init__(
        self, task: Task, config: Config, device: torch.device, read_weights: ReadWeights = read_checkpoint
    ) -> None:
        """read_weights: from MODEL.WEIGHTS to what `task.load_state_dict` takes."""
        self.task, self.config, self._read_weights = task, config, read_weights
        self.optimizer = build_optimizer(task.parameter_groups(), config.solver)
        self.schedule = build_schedule(self.optimizer, config.solver)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.solver.amp == "fp16")
        self.checkpoints = Checkpointer(config.output_dir, config.solver.checkpoints_to_keep)

    def save(self, iteration: int, final: bool = False) -> Path:
        """After update `iteration`: gathers every process's randomness; the main process writes; all wait."""
        streams = distributed.all_gather_object(rng_state())
        path = self.checkpoints.path(None if final else iteration)
        if distributed.is_main():
            content = {
                **self.task.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "iteration": iteration,
                "rng": streams,
                "config": dump_config(self.config),
                "version": twostage.__version__,
            }
            self.checkpoints.save(content, None if final else iteration)
            log.info("Saved %s", path)
        distributed.barrier()
        return path

    def resume(self) -> tuple[int, list[dict[str, Any]] | None]:
        """Loads the newest checkpoint: (next update, each process's randomness), or (0, None) where there
        is none.

        Raises:
            CheckpointError: what is there does not fit this run.
        """
        found = self.checkpoints.load_newest()
        if found is None:
            log.info("Nothing to resume in %s: starting anew", self.checkpoints.folder)
            return 0, None
        path, state = found
        if missing := [name for name in _NEEDED if name not in state]:
            raise CheckpointError(f"{path} cannot be resumed: it has no {', '.join(missing)}.")
        for line in diff_configs(parse_config(state["config"], str(path)), self.config):
            log.warning("Resuming with another option: %s", line)
        self.task.load_state_dict(state, str(path), resuming=True)
        self._load_optimizer(state["optimizer"], path)
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if changes := self.schedule.changes(state["scheduler"]):
            log.warning("Another learning rate schedule from here on: %s", "; ".join(changes))
        log.info("Resuming from %s after %d updates", path, state["iteration"] + 1)
        return int(state["iteration"]) + 1, state["rng"]

    def start_from_weights(self) -> None:
        """MODEL.WEIGHTS where they are given; the optimiser starts fresh."""
        path = self.config.model.weights
        if path:
            self.task.load_state_dict(self._read_weights(path), path, resuming=False)
            log.info("Starting from the weights in %s", path)

    def restore_rng(self, streams: list[dict[str, Any]]) -> None:
        """This process's stream; with another number of processes none fits, and a warning says so."""
        if len(streams) == distributed.world_size():
            set_rng_state(streams[distributed.rank()])
            return
        log.warning(
            "Written by %d processes and resumed by %d: random numbers differ from here on",
            len(streams),
            distributed.world_size(),
        )

    def _load_optimizer(self, stored: dict[str, Any], path: Path) -> None:
        """The moments of the checkpoint, the constants of the configuration."""
        fresh = self.optimizer.state_dict()["param_groups"]
        if any(("betas" in group) != ("betas" in fresh[0]) for group in stored["param_groups"]):
            raise CheckpointError(
                f"{path} was written with another SOLVER.OPTIMIZER than {self.config.solver.optimizer}. "
                "Resume with the one of the run, or start anew from these weights with MODEL.WEIGHTS."
            )
        expected = {group["name"]: len(group["params"]) for group in fresh}
        got = {group.get("name"): len(group["params"]) for group in stored["param_groups"]}
        if expected != got:
            raise CheckpointError(
                f"{path}: the optimiser trained other parameters: expected {expected}, got {got}. Resume "
                "with the options of the run, or start anew from these weights with MODEL.WEIGHTS."
            )
        self.optimizer.load_state_dict(stored)
        kept = ("lr_factor", "weight_decay", "momentum")
        for group, own in zip(self.optimizer.param_groups, fresh, strict=True):
            group.update({name: own[name] for name in kept if name in own})
