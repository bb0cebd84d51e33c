"""Text features on disk: written in one piece or not at all, and never trusted when they look damaged."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


def read_features(path: Path, rows: int) -> Tensor | None:
    """(rows, D) float32 unit rows, or None when the file is absent or damaged (with a warning: it will be
    made anew)."""
    if not path.is_file():
        return None
    try:
        # read rather than mapped: a mapped file that another process cuts short would end this one
        features = load(path.read_bytes())["features"]
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        logger.warning("Text cache %s is damaged (%s): encoding the prompts again", path, error)
        return None
    lengths = features.norm(dim=-1) if features.ndim == 2 and features.is_floating_point() else torch.zeros(1)
    if len(features) != rows or not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-4):
        logger.warning("Text cache %s is damaged (not %d unit rows): encoding the prompts again", path, rows)
        return None
    return features


def write_features(path: Path, features: Tensor, info: Mapping[str, str]) -> None:
    """What read_features reads, with facts for people."""
    write_tensors(path, {"features": features}, info)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, str]) -> None:
    """Write beside the goal, then rename: a reader sees the old file, the new one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    os.close(handle)
    try:
        whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(whole, name, metadata=dict(info))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
