"""Numbers recorded from the public dense CLIP implementations: the records, their inputs and their tower."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from twostage.readout.engine import Tower

GOLDEN = Path(__file__).resolve().parent / "golden" / "dense"


@cache
def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_dense_{name}", GOLDEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@cache
def records() -> SimpleNamespace:
    """all: the records; inputs: the makers of inputs; state: weights, their digest checked."""
    record = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    weights = module("weights")
    state = weights.state_dict("a")
    assert weights.fingerprint(state) == record["weights_sha256"]["a"]
    return SimpleNamespace(all=record["records"], inputs=module("inputs"), state=state)


def case(method: str, size: str = "native", **options: Any) -> dict[str, Any]:
    """The one record of a method at a size, with these options."""
    found: list[dict[str, Any]] = [
        one
        for one in records().all
        if one["method"] == method
        and one["size"] == size
        and all(one["options"].get(name) == value for name, value in options.items())
    ]
    assert len(found) == 1, (method, size, options, len(found))
    return found[0]


def cases() -> list[tuple[str, str]]:
    """(method, size) of every record."""
    return [(one["method"], one["size"]) for one in records().all]


@cache
def recorded_tower(official: bool = False) -> Tower:
    """The tower that the records belong to; official: plain GELU and a smaller eps, as in MaskCLIP's port."""
    vision = {"image_size": 224, "patch_size": 16, "width": 256, "layers": 12, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 128, "width": 64, "heads": 1, "layers": 1}
    made = CLIP(64, vision, text, quick_gelu=not official).eval()
    made.load_state_dict({name: torch.from_numpy(value) for name, value in records().state.items()})
    if official:
        for part in made.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = 1e-6
    return Tower(made.visual.requires_grad_(False))


def image(size: Any = "native") -> Tensor:
    """(1, 3, H, W) normalised."""
    return torch.from_numpy(records().inputs.image(size))


def text() -> Tensor:
    """(10, 64) unit rows."""
    return torch.from_numpy(records().inputs.text())


def compare(record: dict[str, Any], name: str, got: Tensor) -> None:
    """Fails where a sampled value is further off than the record allows."""
    output = record["outputs"][name]
    assert got.numel() == np.prod(output["shape"]), (name, tuple(got.shape), output["shape"])
    values = got.detach().float().reshape(-1).numpy()[records().inputs.samples(name, got.numel())]
    error = np.abs(values - np.array(output["samples"])).max()
    scale = 1.0 if name == "probabilities" else output["absmax"]
    allowed = record["tolerance"][name] * scale
    assert error <= allowed, f"{record['method']} {name}: off by {error:.3g}, allowed {allowed:.3g}"


def compare_map(record: dict[str, Any], name: str, got: Tensor, differing: float = 0.0) -> None:
    """Fails where more than the share `differing` of an integer map differs."""
    expected = np.array(record["maps"][name]["values"]).reshape(record["maps"][name]["shape"])
    found = got.numpy().reshape(expected.shape)
    share = float((found != expected).mean())
    assert share <= differing, f"{record['method']} {name}: {share:.3%} differ, allowed {differing:.3%}"
