"""Networks from a configuration, with fresh weights, and the files of weights that ship with the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from twostage.config import ConfigError
from twostage.vocabulary import nearest

WEIGHTS = Path(__file__).resolve().parent / "maskformer" / "weights"
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """A network with its weights, and the class names it was trained on (none where nothing is said)."""

    network: Network
    names: tuple[str, ...]


def fresh(
    section: str,
    given: Mapping[str, Any],
    kind: Callable[[Any], Network],
    config: Callable[..., Any],
    seed: int,
) -> Network:
    """A network of the options in MODEL.<section>, its weights drawn from `seed`, on the CPU or torch's
    default device.

    kind: the network's class, made from one `config`.

    Raises:
        ConfigError: an option is unknown (the nearest is named) or unfit.
    """
    known = inspect.signature(config).parameters
    for name in given:
        if name not in known:
            raise ConfigError(f"MODEL.{section}: unknown option {name.upper()}.{nearest(name, known)}")
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    torch.manual_seed(seed)
    try:
        made = kind(config(**options))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.{section}: {error}") from error
    # The layout that convolutions want; a step of the small network is a sixth cheaper on a CPU.
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def shipped(path: str) -> str | Path:
    """The file behind "package:NAME", weights that ship with twostage; other paths as they are."""
    prefix = "package:"
    if not path.startswith(prefix):
        return path
    name = path.removeprefix(prefix)
    found = sorted(WEIGHTS.glob("*.safetensors"))
    for file in found:
        if file.stem == name:
            return file
    raise ConfigError(
        f"MODEL.WEIGHTS: no weights {name!r} ship with the package.{nearest(name, [f.stem for f in found])}"
    )
