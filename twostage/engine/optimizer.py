"""AdamW as mask transformers use it: parameter groups, polynomial learning rate, clipping of the whole
model.
"""

from __future__ import annotations

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


def build_optimizer(groups: list[dict[str, Any]], solver: SolverConfig) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.999, eps 1e-8, over groups as group_parameters makes them.

    Raises:
        TwostageError: there is nothing to train.
    """
    if not any(len(list(group["params"])) for group in groups):
        raise TwostageError("Nothing to train: every parameter is frozen. Check the options of the model.")
    return torch.optim.AdamW(
        [{**group, "lr": solver.base_lr * group.get("lr_factor", 1.0)} for group in groups],
        lr=solver.base_lr,
        weight_decay=solver.weight_decay,
    )


class PolySchedule:
    """Factor on every learning rate: (1 - i / max_iter) ** power, times a linear rise in the first
    warmup_iters.

    It follows from the iteration alone; its state holds the constants, so that a resumed run can tell if
    they changed.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, solver: SolverConfig) -> None:
        self._optimizer = optimizer
        self._base = solver.base_lr
        self._constants = {
            "max_iter": solver.max_iter,
            "power": solver.poly_power,
            "warmup_iters": solver.warmup_iters,
            "warmup_factor": solver.warmup_factor,
        }

    def factor(self, iteration: int) -> float:
        """The factor of update `iteration`, counted from 0."""
        limits = self._constants
        decayed = max(0.0, 1.0 - iteration / limits["max_iter"]) ** limits["power"]
        if iteration >= limits["warmup_iters"]:
            return float(decayed)
        progress = iteration / limits["warmup_iters"]
        return float(decayed * (limits["warmup_factor"] * (1.0 - progress) + progress))

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
