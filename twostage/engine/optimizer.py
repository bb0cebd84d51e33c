"""Parameter groups, AdamW or SGD, the learning rate's fall and warm-up, clipping of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from twostage.config import SolverConfig
from twostage.errors import TwostageError

NORMS = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm and InstanceNorm of every dimension
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def group_parameters(module: nn.Module, solver: SolverConfig) -> list[dict[str, Any]]:
    """Trainable parameters in groups {"name", "params", "lr_factor", "weight_decay"}, in the module's own
    order.

    The decay follows the owner of a parameter: normalisation layers and embedding tables have their own.
    What has "backbone" in its name learns at solver.backbone_multiplier of the rate. A shared parameter
    counts once.
    """
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for path, owner in module.named_modules():
        kind, decay = _decay(owner, solver)
        for own_name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            in_backbone = "backbone" in f"{path}.{own_name}"
            factor = solver.backbone_multiplier if in_backbone else 1.0
            name = f"{'backbone' if in_backbone else 'head'}/{kind}"
            group = groups.setdefault(
                name, {"name": name, "params": [], "lr_factor": factor, "weight_decay": decay}
            )
            group["params"].append(parameter)
    return list(groups.values())


def _decay(owner: nn.Module, solver: SolverConfig) -> tuple[str, float]:
    if isinstance(owner, NORMS):
        return "norm", solver.weight_decay_norm
    if isinstance(owner, nn.Embedding):
        return "embedding", solver.weight_decay_embed
    return "weight", solver.weight_decay


def build_optimizer(groups: list[dict[str, Any]], solver: SolverConfig) -> torch.optim.Optimizer:
    """SOLVER.OPTIMIZER over groups as group_parameters makes them.

    AdamW has betas 0.9 and 0.999, eps 1e-8; SGD has SOLVER.MOMENTUM.

    Raises:
        TwostageError: there is nothing to train.
    """
    if not any(len(list(group["params"])) for group in groups):
        raise TwostageError("Nothing to train: every parameter is frozen. Check the options of the model.")
    rated = [{**group, "lr": solver.base_lr * group.get("lr_factor", 1.0)} for group in groups]
    if solver.optimizer == "sgd":
        return torch.optim.SGD(
            rated, lr=solver.base_lr, momentum=solver.momentum, weight_decay=solver.weight_decay
        )
    return torch.optim.AdamW(rated, lr=solver.base_lr, weight_decay=solver.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, solver: SolverConfig) -> Schedule:
    """What SOLVER.SCHEDULE says."""
    return (CosineSchedule if solver.schedule == "cosine" else PolySchedule)(optimizer, solver)


class Schedule:
    """Factor on every learning rate: a fall to zero at max_iter, times the warm-up in the first warmup_iters.

    The warm-up rises linearly from warmup_factor to 1, or stays at warmup_factor ("constant"). The factor
    follows from the iteration alone; the state holds the constants, so that a resumed run can tell if they
    changed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, solver: SolverConfig) -> None:
        self._optimizer = optimizer
        self._base = solver.base_lr
        self._constants: dict[str, Any] = {
            "max_iter": solver.max_iter,
            **self._shape(solver),
            "warmup_iters": solver.warmup_iters,
            "warmup_factor": solver.warmup_factor,
        }
        if solver.warmup_method != "linear":
            self._constants["warmup_method"] = solver.warmup_method

    def _shape(self, solver: SolverConfig) -> dict[str, Any]:
        """The constants of this kind of fall."""
        raise NotImplementedError

    def _fallen(self, iteration: int) -> float:
        """The factor without warm-up."""
        raise NotImplementedError

    def factor(self, iteration: int) -> float:
        """The factor of update `iteration`, counted from 0."""
        limits = self._constants
        fallen = self._fallen(iteration)
        if iteration >= limits["warmup_iters"]:
            return float(fallen)
        constant = limits.get("warmup_method") == "constant"
        progress = 0.0 if constant else iteration / limits["warmup_iters"]
        return float(fallen * (limits["warmup_factor"] * (1.0 - progress) + progress))

    def set(self, iteration: int) -> float:
        """Sets the rates of every group for this update and returns that of factor one."""
        rate = self._base * self.factor(iteration)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)
        return rate

    def state_dict(self) -> dict[str, Any]:
        """The constants."""
        return {"base_lr": self._base, **self._constants}

    def changes(self, stored: dict[str, Any]) -> list[str]:
        """What differs from the constants of an earlier run, in words."""
        return [
            f"{name} {stored.get(name)} -> {value}"
            for name, value in self.state_dict().items()
            if stored.get(name) != value
        ]


class PolySchedule(Schedule):
    """(1 - i / max_iter) ** power."""

    def _shape(self, solver: SolverConfig) -> dict[str, Any]:
        return {"power": solver.poly_power}

    def _fallen(self, iteration: int) -> float:
        fallen: float = max(0.0, 1.0 - iteration / self._constants["max_iter"]) ** self._constants["power"]
        return fallen


class CosineSchedule(Schedule):
    """(1 + cos(pi i / max_iter)) / 2 (Loshchilov and Hutter, "SGDR", 2017)."""

    def _shape(self, solver: SolverConfig) -> dict[str, Any]:
        return {"schedule": "cosine"}

    def _fallen(self, iteration: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, iteration / self._constants["max_iter"])))


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales all gradients together so that their joint L2 norm is at most max_norm (0: leaves them); the
    norm before.

    One norm for the whole model, as the paper has it, not one for each parameter.
    """
    limit = max_norm if max_norm > 0 else float("inf")
    return torch.nn.utils.clip_grad_norm_(list(parameters), limit)


def trained(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    """Every parameter that the optimiser moves."""
    for group in optimizer.param_groups:
        yield from group["params"]
