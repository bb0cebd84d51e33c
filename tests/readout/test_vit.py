"""The tower computed from its parameters: equal to open_clip's own forward, to formulas written out, and to
records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.readout import vit
from twostage.readout.engine import Reading, Tower, read
from twostage.readout.knobs import Knobs
from twostage.readout.vit import DenseTowerError


def reading(model: ClipModel, batch: Tensor, knobs: Knobs) -> Reading:
    with torch.no_grad():
        return read(Tower(model.visual), batch, knobs)


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (16, 64), (64, 64)])
def test_native_attention_is_the_tower_itself(small: ClipModel, size: tuple[int, int]) -> None:
    batch = pixels(2, 3, *size)
    before = {name: value.clone() for name, value in small.visual.state_dict().items()}
    row = reading(small, batch, Knobs(positions="bicubic")).first
    if size == (32, 32):
        with torch.no_grad():
            torch.testing.assert_close(row, small.visual(batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.normalize(row, dim=-1), small.encode_images(batch), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in small.visual.state_dict().items())


def test_identity_without_residual_and_ffn_by_hand(small: ClipModel) -> None:
    batch = pixels(1, 3, 32, 32)
    visual: Any = small.visual
    with torch.no_grad():
        tokens, grid = vit.embed(visual, batch)
        assert grid == (4, 4)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        last = visual.transformer.resblocks[-1]
        y = last.ln_1(tokens)
        value = y @ last.attn.in_proj_weight[128:].T + last.attn.in_proj_bias[128:]
        out = value @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        bare = visual.ln_post(out) @ visual.proj
        x = tokens + out
        full = visual.ln_post(x + last.mlp(last.ln_2(x))) @ visual.proj
        half = visual.ln_post(x) @ visual.proj
    for flags, expected in (
        ({"residual": False, "ffn": False}, bare),
        ({"residual": True, "ffn": True}, full),
        ({"residual": True, "ffn": False}, half),
    ):
        got = reading(small, batch, Knobs(attention="identity", **flags))
        torch.testing.assert_close(got.features, expected[:, 1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.first, expected[:, 0], rtol=1e-5, atol=1e-5)


def test_heads_are_split_as_torch_does(small: ClipModel) -> None:
    block = vit.blocks(small.visual)[0]
    tokens = pixels(2, 5, 64)
    with torch.no_grad():
        q, k, v = vit.project(block, tokens)
        assert q.shape == (2, 4, 5, 16)
        maps = (q @ k.transpose(-1, -2) / 4).softmax(dim=-1)
        y = block.ln_1(tokens)
        expected, weights = block.attn(y, y, y, average_attn_weights=False)
    torch.testing.assert_close(maps, weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vit.merge_heads(block, maps @ v), expected, rtol=1e-5, atol=1e-5)


def tower(**options: Any) -> VisionTransformer:
    return VisionTransformer(32, 8, 64, 1, 4, 4.0, output_dim=32, **options)


@pytest.mark.parametrize(
    ("visual", "reason"),
    [
        (tower(attentional_pool=True), "pools by attention"),
        (tower(pool_type="avg"), "pools by 'avg'"),
        (tower(final_ln_after_pool=True), "after pooling"),
        (tower(scale_attn=True), "extra part 'ln_attn'"),
        (tower(qk_norm=True), "extra part 'ln_q'"),
        (nn.Linear(2, 2), "not open_clip's VisionTransformer"),
    ],
)
def test_other_towers_are_refused(visual: nn.Module, reason: str) -> None:
    with pytest.raises(DenseTowerError, match=reason):
        vit.require_vit(visual)


def test_plain_towers_are_accepted() -> None:
    vit.require_vit(tower())
    vit.require_vit(tower(ls_init_value=0.1, no_ln_pre=True, patch_dropout=0.5))
