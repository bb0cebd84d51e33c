"""What holds for every preset: batches, grids of any shape, half precision, a model that stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout import presets
from twostage.readout.engine import Tower, fitted, wanted
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, logits
from twostage.readout.preset import BENCHMARKS, Preset

ALL = pytest.mark.parametrize("name", presets.PRESETS)
SIZES = ((32, 32), (40, 56), (64, 24))


def pixels(count: int, size: tuple[int, int], seed: int = 3) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def words(width: int = 32, count: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(9)), dim=1)


def guest(rgb: Tensor) -> Tensor:
    """A second vision model of sorts: colours and their gradients at a fourth of the size."""
    small = F.avg_pool2d(rgb, 4)
    down = F.pad(small, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    across = F.pad(small, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    return torch.cat([small - 0.5, 4 * down, 4 * across], dim=1)


def regions(size: tuple[int, int]) -> Tensor:
    """Left half, right half, and a square across both."""
    masks = torch.zeros(3, *size, dtype=torch.bool)
    masks[0, :, : size[1] // 2] = True
    masks[1, :, size[1] // 2 :] = True
    masks[2, 8:24, 8:20] = True
    return masks


def look(model: ClipModel, preset: Preset, batch: Tensor) -> Look:
    tower = Tower(model.visual)
    return Look(
        tower,
        fitted(preset.knobs, len(tower.blocks)),
        batch.to(model.dtype),
        words(),
        scale=40.0,
        settings=preset.settings,
        guest=guest if preset.guest else None,
        regions=[regions(tuple(batch.shape[2:])) for _ in batch] if preset.regions else None,
    )


def answer(model: ClipModel, name: str, batch: Tensor, **knobs: Any) -> Tensor:
    preset = presets.find(name)
    preset = replace(preset, knobs=replace(preset.knobs, **knobs))
    return logits(preset.method, look(model, preset, batch))


@ALL
@pytest.mark.parametrize("size", SIZES)
def test_a_batch_is_its_members(small: ClipModel, name: str, size: tuple[int, int]) -> None:
    batch = pixels(2, size)
    together = answer(small, name, batch)
    assert together.dtype == torch.float32
    assert together.isfinite().all()
    assert together.shape[:2] == (2, 5)
    for one, got in zip(batch, together, strict=True):
        torch.testing.assert_close(answer(small, name, one[None])[0], got, rtol=1e-4, atol=1e-4)


@ALL
def test_the_model_stays_as_it_was(small: ClipModel, name: str) -> None:
    before = {key: value.clone() for key, value in small.visual.state_dict().items()}
    first = answer(small, name, pixels(1, (32, 32)))
    assert all(torch.equal(value, before[key]) for key, value in small.visual.state_dict().items())
    assert torch.equal(answer(small, name, pixels(1, (32, 32))), first), "the same answer twice"


@ALL
def test_half_precision(small: ClipModel, name: str) -> None:
    """bfloat16 weights: cosines within 2e-2 of float32 (scale 40 is taken off)."""
    full = answer(small, name, pixels(1, (40, 56)))
    got = answer(small.to_dtype(torch.bfloat16), name, pixels(1, (40, 56)))
    assert got.isfinite().all()
    assert ((got - full).abs() / 40).mean() < 2e-2


@ALL
def test_it_says_where_it_comes_from(name: str) -> None:
    preset = presets.find(name)
    assert preset.name == name
    assert preset.title
    assert len(preset.source) > 12
    assert set(preset.published) <= set(BENCHMARKS)
    assert set(preset.choices) <= set(preset.settings)


@pytest.mark.parametrize("depth", [3, 4, 6, 12, 24, 32])
@ALL
def test_block_numbers_fit_any_depth(name: str, depth: int) -> None:
    knobs = fitted(presets.find(name).knobs, depth)
    asked = wanted(knobs)
    early = [*asked.tokens, *(b for group in (*asked.maps, *asked.self_maps) for b in group)]
    assert all(0 <= block < depth - 1 for block in early)
    assert all(0 <= block < depth for block in knobs.suppress)


def test_unknown_presets_and_settings() -> None:
    with pytest.raises(TwostageError, match="Did you mean 'gclip'"):
        presets.find("gcilp")
    with pytest.raises(TwostageError, match="Did you mean 'key_smooth'"):
        presets.find("maskclip").with_settings({"key_smoth": 1})
    with pytest.raises(TwostageError, match="It has none"):
        presets.find("sclip").with_settings({"sigma": 1})
    with pytest.raises(TwostageError, match="unknown heads 'both'"):
        Knobs(heads="both")  # type: ignore[arg-type]
