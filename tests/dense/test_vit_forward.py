"""The tower computed from its parameters: equal to open_clip's own forward, to formulas written out, and to
records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.dense import _refine, _vit
from twostage.dense._vit import DenseTowerError


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def run(
    visual: nn.Module, batch: Tensor, last: _vit.Attention, mode: Any = "bicubic", **flags: bool
) -> Tensor:
    """(B, L, E), not normalised."""
    with torch.no_grad():
        tokens, _ = _vit.embed(visual, batch, mode)
        *early, final = _vit.blocks(visual)
        for block in early:
            tokens = _vit.run_block(block, tokens)
        return _vit.readout(visual, _vit.run_block(final, tokens, last, **flags))


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (16, 64), (64, 64)])
def test_native_attention_is_the_tower_itself(vit: ClipModel, size: tuple[int, int]) -> None:
    batch = pixels(2, 3, *size)
    before = {name: value.clone() for name, value in vit.visual.state_dict().items()}
    row = run(vit.visual, batch, _vit.native)[:, 0]
    if size == (32, 32):
        with torch.no_grad():
            torch.testing.assert_close(row, vit.visual(batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.normalize(row, dim=-1), vit.encode_images(batch), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in vit.visual.state_dict().items())


def test_identity_without_residual_and_ffn_by_hand(vit: ClipModel) -> None:
    batch = pixels(1, 3, 32, 32)
    visual: Any = vit.visual
    with torch.no_grad():
        tokens, grid = _vit.embed(visual, batch)
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
        got = run(visual, batch, _vit.identity, **flags)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_heads_are_split_as_torch_does(vit: ClipModel) -> None:
    block = _vit.blocks(vit.visual)[0]
    tokens = pixels(2, 5, 64)
    with torch.no_grad():
        q, k, v = _vit.project_qkv(block, tokens)
        assert q.shape == (2, 4, 5, 16)
        maps = (q @ k.transpose(-1, -2) / 4).softmax(dim=-1)
        y = block.ln_1(tokens)
        expected, weights = block.attn(y, y, y, average_attn_weights=False)
    torch.testing.assert_close(maps, weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(_vit.merge_heads(block, maps @ v), expected, rtol=1e-5, atol=1e-5)


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
        _vit.require_vit(visual)


def test_plain_towers_are_accepted() -> None:
    _vit.require_vit(tower())
    _vit.require_vit(tower(ls_init_value=0.1, no_ln_pre=True, patch_dropout=0.5))


def recorded_tower(state: dict[str, np.ndarray], official: bool) -> nn.Module:
    """official: plain GELU and a smaller eps, as in MaskCLIP's own port of the tower."""
    vision = {"image_size": 224, "patch_size": 16, "width": 256, "layers": 12, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 128, "width": 64, "heads": 1, "layers": 1}
    module = CLIP(64, vision, text, quick_gelu=not official).eval()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    if official:
        for part in module.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = 1e-6
    return module.visual


def compare(recorded: SimpleNamespace, method: str, name: str, got: Tensor) -> None:
    record = recorded.cases[method, "native"]
    output = record["outputs"][name]
    assert got.numel() == np.prod(output["shape"])
    values = got.reshape(-1).numpy()[recorded.inputs.samples(name, got.numel())]
    error = np.abs(values - np.array(output["samples"])).max()
    assert error <= record["tolerance"][name] * output["absmax"], (method, name, error)


@pytest.mark.golden
@pytest.mark.parametrize("method", ["vanilla", "identity_full", "identity_reduced", "maskclip_official"])
def test_records_of_the_public_code(recorded: SimpleNamespace, method: str) -> None:
    options = recorded.cases[method, "native"]["options"]
    visual = recorded_tower(recorded.state, official=method == "maskclip_official")
    batch = torch.from_numpy(recorded.inputs.image("native"))
    last = _vit.native if method == "vanilla" else _vit.identity
    out = run(visual, batch, last, "bicubic_scale", residual=options["residual"], ffn=options["ffn"])
    compare(recorded, method, "features", out[0, 1:])
    scores = F.normalize(out[:, 1:], dim=-1) @ torch.from_numpy(recorded.inputs.text()).T
    compare(recorded, method, "logits", scores[0])
    if method == "vanilla":
        compare(recorded, method, "image", out[0, 0])
        compare(recorded, "clip_encode_image", "image", out[0, 0])
    if method != "maskclip_official":
        return
    with torch.no_grad():
        tokens, _ = _vit.embed(visual, batch)
        *early, final = _vit.blocks(visual)
        for block in early:
            tokens = _vit.run_block(block, tokens)
        keys = _vit.merge_heads(final, _vit.project_qkv(final, tokens)[1])[:, 1:]
    dropped = _refine.denoise_prompts(scores, 0.5)
    compare(recorded, method, "logits_pd", dropped[0])
    compare(recorded, method, "logits_ks", _refine.smooth_by_keys(scores, keys, 1.0, "tokens")[0])
    compare(recorded, method, "logits_pd_ks", _refine.smooth_by_keys(dropped, keys, 1.0, "tokens")[0])
