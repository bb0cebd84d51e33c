"""What the door to CLIP refuses, and why: wrong activations, weights that do not fit, tokenizers that do not
match."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from twostage.errors import TwostageError

QUICK_GELU_SOURCES = ("openai", "metaclip", "dfn")
"""Whose weights were trained with x * sigmoid(1.702 x) in place of GELU (Radford et al., 2021, and later
re-trainings)."""


class ClipError(TwostageError):
    """A CLIP model cannot be built, or was asked for something it cannot do."""


def activations(module: nn.Module) -> set[str]:
    """Class names of the activations in the transformer blocks of both towers, for example {"QuickGELU"}."""
    return {type(part).__name__ for name, part in module.named_modules() if name.endswith("mlp.gelu")}


def require_quick_gelu(module: nn.Module, what: str) -> None:
    """Look at the built module and refuse it when a block uses another activation than QuickGELU.

    The wrong one raises no error anywhere, it only costs several points of accuracy.

    Raises:
        ClipError: a transformer block has another activation.
    """
    found = activations(module)
    if found != {"QuickGELU"}:
        raise ClipError(
            f"{what}: these weights need QuickGELU in every block, the model was built with {sorted(found)}."
            " Use the model whose name ends in '-quickgelu'."
        )


def hints_quick_gelu(path: Path) -> bool:
    """Whether a weights file's name says that it comes from one of the sources that need QuickGELU."""
    return any(source in path.name.lower() for source in QUICK_GELU_SOURCES)


def explain_mismatch(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Which tensors are missing, unexpected or of another shape, counted by the first two parts of their
    names."""
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    reshaped = [
        f"{name} {tuple(got[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in got and got[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"missing: {_by_prefix(missing)}")
    if unexpected:
        parts.append(f"not wanted: {_by_prefix(unexpected)}")
    if reshaped:
        more = f" and {len(reshaped) - 3} more" if len(reshaped) > 3 else ""
        parts.append(f"other shapes: {', '.join(reshaped[:3])}{more}")
    return "; ".join(parts) or "the names and shapes agree"


def _by_prefix(names: list[str]) -> str:
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{prefix} ({count})" for prefix, count in counts.most_common(6))


def read_torchscript(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript archive as OpenAI publishes them, in float32; None for any other kind of
    file.

    What such an archive carries beside the weights (three integers, the causal mask) is dropped.
    """
    if not _is_torchscript(path):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*torch.jit.load"
        )  # deprecated, yet the only reader there is
        archive = torch.jit.load(str(path), map_location="cpu")
    state = archive.state_dict()
    extras = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    return {name: value.float() for name, value in state.items() if name not in extras}


def _is_torchscript(path: Path) -> bool:
    """Every archive of torch is a zip file; only a TorchScript one holds code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())
