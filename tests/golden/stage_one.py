"""The recorded stage one: networks with the generated weights, and comparison with the recorded samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import weights
from torch import Tensor

from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer
from twostage.published.names import stage_one_table

GOLDEN = Path(__file__).parent


def golden_json(name: str) -> dict[str, Any]:
    """One recorded case."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def generated(depth: str, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The generated checkpoint's tensors whose published name is wanted."""
    plan = weights.plan(depth)
    return {name: torch.from_numpy(weights.tensor(name, *plan[name])) for name in plan if wanted(name)}


def load_network(depth: str) -> MaskFormer:
    """A MaskFormer in training mode, dropout off, with the generated weights."""
    network = MaskFormer(MaskFormerConfig(backbone=depth, dropout=0.0))
    table = stage_one_table(weights.plan(depth))
    made = generated(depth, set(table.values()).__contains__)
    network.load_state_dict({name: made[source] for name, source in table.items()}, strict=True)
    return network


def assert_sampled(got: Tensor, case: str, quantity: str, tolerance: float) -> None:
    """The recorded samples of one tensor, and its recorded shape."""
    values = np.load(GOLDEN / f"{case}.npz")
    shape = golden_json(case)["quantities"][quantity]["shape"]
    assert list(got.shape) == shape
    picked = got.detach().flatten()[torch.from_numpy(values[f"{quantity}.index"]).long()]
    recorded = torch.from_numpy(values[f"{quantity}.value"])
    torch.testing.assert_close(picked, recorded, rtol=0, atol=tolerance)
