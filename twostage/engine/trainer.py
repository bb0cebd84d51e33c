"""The training loop: fetch, forward, check, backward, clip, update, report, save, evaluate. Knows no
segmentation.

A resumed run equals the uninterrupted one: on the CPU bit for bit, if the batches of iteration i depend on
i alone.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from twostage.config import Config
from twostage.engine import distributed
from twostage.engine.checkpoint import read_checkpoint
from twostage.engine.events import Events
from twostage.engine.optimizer import clip_gradients, trained
from twostage.engine.seeding import rng_state, seed_everything, set_rng_state
from twostage.engine.signals import StopSignals, TrainingInterrupted
from twostage.engine.state import ReadWeights, RunState
from twostage.errors import TwostageError
from twostage.interfaces import Task

log = logging.getLogger(__name__)

MakeBatches = Callable[[int], Iterable[Any]]
"""From the first update's number to endless batches of this process; a batch has len(), slices, and
`image_ids`.
"""
Evaluate = Callable[[int], Mapping[str, float]]
"""Called in every process with the number of the update just made; returns scalars for the curves."""


class NonFiniteLossError(TwostageError):
    """A loss term or the gradient became NaN or infinite; nothing was updated and nothing was saved."""


class _Losses(nn.Module):
    """The task as one forward pass, which is what DistributedDataParallel can watch."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network = task.module
        self._losses = task.losses

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self._losses(batch)


class Trainer:
    """Trains a task that already lies on its device. run() does everything."""

    def __init__(
        self,
        task: Task,
        make_batches: MakeBatches,
        config: Config,
        evaluate: Evaluate | None = None,
        read_weights: ReadWeights = read_checkpoint,
    ) -> None:
        """read_weights: how MODEL.WEIGHTS is read where other files than our own checkpoints are welcome.

        Raises TwostageError where numbers do not fit together, before anything is spent.
        """
        solver = config.solver
        self.task, self.config, self.solver = task, config, solver
        self.device = next(task.module.parameters()).device
        self._make_batches, self._evaluate = make_batches, evaluate
        self._check_sizes()
        self.state = RunState(task, config, self.device, read_weights)

    def run(self, resume: bool = False) -> Path:
        """Trains to SOLVER.MAX_ITER and returns the final checkpoint.

        Raises:
            TrainingInterrupted: a signal asked to stop; the state is saved.
            NonFiniteLossError: before the update that would have spoilt the weights.
            CheckpointError: nothing fits what should be resumed or started from.
        """
        seed_everything(self.config.seed, distributed.rank())
        start, streams = self.state.resume() if resume else (0, None)
        if streams is None:
            self.state.start_from_weights()
        model = self._wrap()
        events = Events(Path(self.config.output_dir), self.solver.max_iter, self.solver.log_period, start)
        with StopSignals() as stop, contextlib.closing(events):
            batches = iter(self._make_batches(start))
            if streams is not None:  # after the loader was made: making it may have drawn numbers
                self.state.restore_rng(streams)
            for iteration in range(start, self.solver.max_iter):
                began = time.perf_counter()
                batch = self._fetch(batches, stop, iteration, start)
                waited = time.perf_counter() - began
                rate = self.state.schedule.set(iteration)
                values = self._update(model, batch, iteration)
                values["data_time"] = waited
                events.step(iteration, values, rate, len(batch) * distributed.world_size())
                self._after(iteration, stop, events)
        return self.state.checkpoints.path(None)

    def _update(self, model: nn.Module, batch: Any, iteration: int) -> dict[str, float]:
        """One update; returns the terms, their total and the gradient norm before clipping."""
        self.task.module.train()
        optimizer, scaler = self.state.optimizer, self.state.scaler
        optimizer.zero_grad(set_to_none=True)
        parts = _split(batch, self.solver.accumulation)
        names: list[str] = []
        rows: list[Tensor] = []
        for number, part in enumerate(parts):
            wait = number + 1 < len(parts) and isinstance(model, DistributedDataParallel)
            with model.no_sync() if wait else contextlib.nullcontext():  # type: ignore[operator,union-attr]
                with self._autocast():
                    losses: dict[str, Tensor] = model(part)
                    total = torch.stack([term.float() for term in losses.values()]).sum()
                scaler.scale(total * (len(part) / len(batch))).backward()
            names = list(losses)
            rows.append(torch.stack([term.detach().float() for term in losses.values()]))
        table = torch.stack(rows).cpu()  # (parts, terms): the one wait for the device in a step
        self._require_finite(table, names, parts, iteration)
        scaler.unscale_(optimizer)
        norm = float(clip_gradients(trained(optimizer), self.solver.clip_gradients))
        if not math.isfinite(norm) and not scaler.is_enabled():  # the fp16 scaler skips such a step itself
            ids = ", ".join(map(str, batch.image_ids))
            raise NonFiniteLossError(_not_finite(iteration, f"the gradient norm is {norm}", ids))
        scaler.step(optimizer)
        scaler.update()
        shares = torch.tensor([len(part) / len(batch) for part in parts])
        means = (shares[:, None] * table).sum(0).tolist()
        return {"total_loss": sum(means), **dict(zip(names, means, strict=True)), "grad_norm": norm}

    def _require_finite(self, table: Tensor, names: list[str], parts: list[Any], iteration: int) -> None:
        """Raises in every process where any process met a term that is not finite."""
        bad = ~torch.isfinite(table)
        if not distributed.highest(int(bad.any()), self.device):
            return
        if not bad.any():
            raise NonFiniteLossError(
                _not_finite(iteration, "another process met a loss that is not finite", "")
            )
        terms = ", ".join(
            f"{name} is {table[:, t][bad[:, t]][0]}" for t, name in enumerate(names) if bad[:, t].any()
        )
        ids = ", ".join(str(i) for p, part in enumerate(parts) if bad[p].any() for i in part.image_ids)
        raise NonFiniteLossError(_not_finite(iteration, terms, ids))

    def _after(self, iteration: int, stop: StopSignals, events: Events) -> None:
        """Saving, stopping and evaluating once update `iteration` is made."""
        solver, done = self.solver, iteration + 1
        last = done == solver.max_iter
        asked = distributed.highest(stop.requested, self.device)
        due = solver.checkpoint_period > 0 and done % solver.checkpoint_period == 0
        with events.paused():
            if last or due or asked:
                path = self.state.save(iteration, final=last)
                if asked:
                    raise _interrupted(path, asked)
            period = self.config.test.eval_period
            if self._evaluate is not None and (last or (period > 0 and done % period == 0)):
                before = rng_state()
                scalars = self._evaluate(iteration)
                set_rng_state(before)
                events.scalars(iteration, scalars)

    def _fetch(self, batches: Iterator[Any], stop: StopSignals, iteration: int, start: int) -> Any:
        try:
            batch = next(batches)
        except StopIteration:
            raise TwostageError(
                f"The training data ended at update {iteration}; it has to go on for ever."
            ) from None
        except Exception:
            # Ctrl-C reaches the reading processes too; their end is then no error of the data.
            if not stop.requested or distributed.world_size() > 1 or iteration == start:
                raise
            raise _interrupted(self.state.save(iteration - 1), stop.requested) from None
        if len(batch) < self.solver.accumulation:
            raise TwostageError(
                f"SOLVER.ACCUMULATION: a batch of {len(batch)} cannot be worked through in "
                f"{self.solver.accumulation} parts. Lower it or raise SOLVER.IMS_PER_BATCH."
            )
        return batch

    def _wrap(self) -> nn.Module:
        model = _Losses(self.task)
        # Every parameter takes part in every loss, so DDP need not search for unused ones.
        return DistributedDataParallel(model) if distributed.is_distributed() else model

    def _autocast(self) -> Any:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.solver.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=kinds[self.solver.amp])

    def _check_sizes(self) -> None:
        solver, processes = self.solver, distributed.world_size()
        if solver.amp == "fp16" and self.device.type != "cuda":
            raise TwostageError(
                f"SOLVER.AMP: fp16 needs a GPU, this run is on {self.device}. Use bf16 or off."
            )
        if solver.ims_per_batch % processes:
            raise TwostageError(
                f"SOLVER.IMS_PER_BATCH: {processes} processes cannot share {solver.ims_per_batch} evenly."
            )
        share = solver.ims_per_batch // processes
        if share < solver.accumulation:
            raise TwostageError(
                f"SOLVER.ACCUMULATION: a process has {share} photos of SOLVER.IMS_PER_BATCH "
                f"{solver.ims_per_batch}; expected at most {share} parts, got {solver.accumulation}."
            )


def _split(batch: Any, parts: int) -> list[Any]:
    """Consecutive parts whose sizes differ by one at most.

    Weighted by their sizes, their gradients add up to the whole batch's where the loss is a mean over
    photos. A loss that is normalised by something counted in the batch (MaskFormer's by the number of true
    masks, a weighted cross entropy by the sum of weights) is normalised in each part, so it is equal in
    expectation only, as it is over several processes. Batch statistics and dropout see the parts.
    """
    edges = [len(batch) * number // parts for number in range(parts + 1)]
    return [batch[low:high] for low, high in itertools.pairwise(edges)]


def _not_finite(iteration: int, what: str, ids: str) -> str:
    images = f" Images: {ids}." if ids else ""
    return (
        f"Training stopped before update {iteration + 1}: {what}.{images} Nothing was updated or saved. "
        "Look at these images and labels; lower SOLVER.BASE_LR or switch SOLVER.AMP off; "
        "--resume goes on from the last checkpoint."
    )


def _interrupted(path: Path, number: int) -> TrainingInterrupted:
    return TrainingInterrupted(
        f"Interrupted: the state is saved in {path}. Go on with --resume.", 128 + number
    )
