"""Every preset that changes the last block alone, against the slow literal readings of `literal_readout`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import literal_readout as literal
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.readout import presets
from twostage.readout.engine import Tower
from twostage.readout.look import Look, logits
from twostage.readout.methods import gclip, maskclip, plain, scclip

SUPPRESSED = (7, 8, 9, 10, 11)
READINGS: dict[str, Callable[[literal.Seen], Tensor]] = {
    "vanilla": literal.vanilla,
    "maskclip": literal.maskclip,
    "sclip": literal.sclip,
    "clearclip": literal.clearclip,
    "naclip": literal.naclip,
    "resclip_lite": literal.resclip_lite,
    "pearl": literal.pearl,
    "gclip": literal.gclip,
    "scclip": literal.scclip,
    "sfp": literal.sfp,
}
GRIDS = {"native": (32, 32), "same count": (16, 64), "wide": (40, 56), "tall": (56, 24)}


@cache
def tower() -> Tower:
    return Tower(literal.literal_tower())


def image(size: tuple[int, int], seed: int = 4) -> Tensor:
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed))


def words() -> Tensor:
    return F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(9)), dim=1)


def look(name: str, size: tuple[int, int], scale: float = 1.0, **settings: float | str) -> Look:
    preset = presets.find(name).with_settings(settings)
    return Look(tower(), preset.knobs, image(size)[None], words(), scale, preset.settings)


def seen(name: str, size: tuple[int, int]) -> literal.Seen:
    suppress = SUPPRESSED if name == "gclip" else ()
    return literal.see(tower().visual, image(size), scaled=name != "maskclip", suppress=suppress)


@pytest.mark.parametrize("size", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", READINGS)
def test_preset(name: str, size: tuple[int, int]) -> None:
    preset = presets.find(name)
    got = logits(preset.method, look(name, size))
    h, w = size[0] // 8, size[1] // 8
    assert got.shape == (1, 6, h, w)
    expected = F.normalize(READINGS[name](seen(name, size)), dim=1) @ words().T
    torch.testing.assert_close(got[0].flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_every_family_is_here() -> None:
    families = {preset.name for family in (plain, maskclip, gclip, scclip) for preset in family.PRESETS}
    assert families <= set(READINGS) <= set(presets.PRESETS)


def test_gclip_with_a_map_for_each_head() -> None:
    whole = look("gclip", (40, 56))
    got = logits(gclip.gclip, replace(whole, knobs=replace(whole.knobs, heads="each")))
    expected = F.normalize(literal.gclip(seen("gclip", (40, 56)), mean=False), dim=1) @ words().T
    torch.testing.assert_close(got[0].flatten(1).T, expected, rtol=1e-4, atol=1e-5)


def test_outliers_that_are_tested_for_are_there() -> None:
    """The literal tower has outliers on every grid, and somewhere one without a sound neighbour."""
    alone = 0
    for size in GRIDS.values():
        one = seen("sfp", size)
        found = literal.sfp_outliers(one)
        assert 0 < len(found) <= 10
        assert literal.lof_outliers(one.outputs[-1][1:])
        alone += int((literal.repaired(one, one.outputs[8][1:], found) == 0).all(dim=1).sum())
    assert alone > 0


def probabilities(cosines: Tensor) -> list[list[float]]:
    """Softmax over classes at sharpness 100."""
    rows = [[math.exp(100 * float(value)) for value in row] for row in cosines]
    return [[value / sum(row) for value in row] for row in rows]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.99])
def test_maskclip_without_absent_classes(threshold: float) -> None:
    cosines = F.normalize(literal.maskclip(seen("maskclip", (40, 56))), dim=1) @ words().T
    sure = probabilities(cosines)
    expected = cosines.clone()
    for c in range(6):
        if max(row[c] for row in sure) < threshold:
            expected[:, c] = -100
    got = logits(maskclip.maskclip, look("maskclip", (40, 56), prompt_denoise=threshold))
    torch.testing.assert_close(got[0].flatten(1).T, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["channels", "tokens"])
def test_maskclip_with_smooth_keys(norm: str) -> None:
    one = seen("maskclip", (40, 56))
    cosines = F.normalize(literal.maskclip(one), dim=1) @ words().T
    sure = torch.tensor(probabilities(cosines))
    keys = torch.cat([k for _, k, _ in literal.heads_of(one, one.outputs[-1])], dim=1)[1:]
    keys = keys @ one.last.attn.out_proj.weight.T + one.last.attn.out_proj.bias
    if norm == "channels":
        keys = torch.stack([row / row.norm() for row in keys])
    else:
        keys = torch.stack([column / column.norm() for column in keys.T], dim=1)
    votes = torch.zeros_like(sure)
    for i in range(len(keys)):
        votes[i] = (
            sure[i] if sure[i].max() >= 0.9 else sum(keys[i] @ keys[j] * sure[j] for j in range(len(keys)))
        )
    votes = votes.clamp_min(1e-6)
    got = logits(maskclip.maskclip, look("maskclip", (40, 56), key_smooth=0.9, key_norm=norm))
    torch.testing.assert_close(
        got[0].flatten(1).T.softmax(dim=1), votes / votes.sum(1, keepdim=True), rtol=1e-4, atol=1e-5
    )
