"""Both towers: unit rows, every size, every length, every number format; held against open_clip's own
forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.checks import ClipError
from twostage.clip.model import ClipModel
from twostage.clip.precision import has_amx, preferred_dtype
from twostage.clip.towers import grid_of, interpolate_positions
from twostage.interfaces import ImageTextModel

PROMPTS = ["a", "a photo of a traffic light.", "There is the road, route in the scene", "x " * 60, "x"]


def pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("which", ["tiny_vit", "tiny_rn"])
def test_native_size_is_the_towers_own_forward(which: str, request: pytest.FixtureRequest) -> None:
    clip: ClipModel = request.getfixturevalue(which)
    batch = pixels(3, 3, *clip.image_size)
    got = clip.encode_images(batch)
    with torch.no_grad():
        expected = clip._module.encode_image(batch, normalize=True)
    assert torch.equal(got, expected)
    assert got.shape == (3, clip.dim)
    assert isinstance(clip, ImageTextModel)


def test_the_model_is_frozen(tiny_vit: ClipModel) -> None:
    assert not tiny_vit._module.training
    assert not any(p.requires_grad for p in tiny_vit._module.parameters())
    assert tiny_vit.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert tiny_vit.text_tower.width == 32


@pytest.mark.parametrize("size", [(64, 96), (63, 130), (128, 64)])
def test_resnet_at_other_sizes(tiny_rn: ClipModel, size: tuple[int, int]) -> None:
    """The same network built for that grid, its position table resized here, gives the same features."""
    visual = tiny_rn.visual
    with torch.no_grad():
        grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(pixels(1, 3, *size))))))
        assert grid_of(visual, size) == tuple(grid.shape[-2:])
        table = visual.attnpool.positional_embedding
        resized = F.interpolate(
            table[1:].T.reshape(1, -1, 2, 2), size=grid.shape[-2:], mode="bicubic", align_corners=False
        )
        twin = ModifiedResNet([1, 1, 1, 1], 24, 4, 64, 8).eval()
        twin.load_state_dict(visual.state_dict())
        twin.attnpool.positional_embedding = torch.nn.Parameter(
            torch.cat([table[:1], resized.flatten(2)[0].T])
        )
        expected = F.normalize(twin(pixels(2, 3, *size)), dim=-1)
    before = table.clone()
    torch.testing.assert_close(tiny_rn.encode_images(pixels(2, 3, *size)), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(visual.attnpool.positional_embedding, before)


def test_bad_images(tiny_vit: ClipModel) -> None:
    with pytest.raises(ClipError, match="expected"):
        tiny_vit.encode_images(torch.zeros(3, 32, 32))
    with pytest.raises(ClipError, match="smaller than one cell"):
        tiny_vit.encode_images(torch.zeros(1, 3, 7, 32))


@pytest.mark.parametrize("mode", ["bicubic", "bicubic_antialias", "bicubic_scale", "bilinear"])
def test_position_tables(mode: str) -> None:
    table = torch.randn(1 + 12, 5, generator=torch.Generator().manual_seed(0))
    assert interpolate_positions(table, (3, 4), (3, 4), mode) is table
    constant = torch.ones(13, 5)
    constant[0] = 7
    grown = interpolate_positions(constant, (3, 4), (5, 9), mode)
    assert grown.shape == (46, 5)
    torch.testing.assert_close(grown[1:], torch.ones(45, 5))
    assert torch.equal(grown[0], constant[0])
    # rows run along the width: a table that depends on the column alone stays so
    columns = torch.cat([torch.zeros(1, 1), torch.arange(4.0).repeat(3)[:, None]])
    wide = interpolate_positions(columns, (3, 4), (2, 8), mode)[1:].reshape(2, 8)
    torch.testing.assert_close(wide[0], wide[1])
    assert (wide[0].diff() > 0).all()


def test_position_modes_differ_as_documented() -> None:
    table = torch.randn(1 + 16, 3, generator=torch.Generator().manual_seed(0))
    assert interpolate_positions(table, (4, 4), (2, 8), "bicubic_scale") is table, "same count of tokens"
    assert not torch.equal(interpolate_positions(table, (4, 4), (2, 8), "bicubic"), table)
    halves = [interpolate_positions(table, (4, 4), (2, 2), m) for m in ("bicubic", "bicubic_antialias")]
    assert not torch.allclose(*halves)
    with pytest.raises(ClipError, match="unknown mode"):
        interpolate_positions(table, (4, 4), (2, 2), "nearest")  # type: ignore[arg-type]


def test_cut_prompts_equal_the_full_context(tiny_vit: ClipModel) -> None:
    assert tiny_vit.text_tower.causal
    with torch.no_grad():
        expected = tiny_vit._module.encode_text(tiny_vit._tokenizer(PROMPTS), normalize=True)
    for chunk in (1, 2, 256):
        torch.testing.assert_close(tiny_vit.encode_text(PROMPTS, chunk), expected, rtol=0, atol=3e-6)


def test_a_tower_that_looks_ahead_gets_the_full_context() -> None:
    clip = ClipModel.load("test-tiny-free-text", "random", seed=1)
    assert not clip.text_tower.causal
    with torch.no_grad():
        expected = clip._module.encode_text(clip._tokenizer(PROMPTS), normalize=True)
    torch.testing.assert_close(clip.encode_text(PROMPTS, 2), expected, rtol=0, atol=3e-6)


def test_text_gradients_reach_given_embeddings(tiny_vit: ClipModel) -> None:
    tower = tiny_vit.text_tower
    tokens = tiny_vit.tokenize(["a photo of a cat"])
    embedded = tower.embed(tokens).requires_grad_()
    row = tower.encode_embeddings(embedded, tower.end_positions(tokens))
    assert row.shape == (1, tiny_vit.dim)
    row.sum().backward()
    assert embedded.grad is not None
    end = int(tower.end_positions(tokens))
    assert embedded.grad[0, : end + 1].abs().sum(-1).all()
    assert not embedded.grad[0, end + 1 :].any(), "what stands behind the end token has no effect"


def test_too_long_and_missing_prompts(tiny_vit: ClipModel) -> None:
    fits = "x " * 75
    assert tiny_vit.encode_text([fits]).shape == (1, 24)
    with pytest.raises(ClipError, match=r"'x x .* needs more than the 77 tokens"):
        tiny_vit.encode_text(["short", fits + "x"])
    with pytest.raises(ClipError, match="at least one prompt"):
        tiny_vit.encode_text([])
    with pytest.raises(ClipError, match="expected a list"):
        tiny_vit.encode_text("cat")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["tiny_vit", "tiny_rn"])
def test_converted_weights(dtype: torch.dtype, which: str, request: pytest.FixtureRequest) -> None:
    clip: ClipModel = request.getfixturevalue(which)
    small = clip.to_dtype(dtype)
    assert (small.dtype, clip.dtype) == (dtype, torch.float32)
    batch = pixels(2, 3, *clip.image_size)
    images = small.encode_images(batch)
    assert images.dtype == torch.float32
    assert (images * clip.encode_images(batch)).sum(-1).min() > 0.999
    assert (small.encode_text(PROMPTS) * clip.encode_text(PROMPTS)).sum(-1).min() > 0.999
    assert small.logit_scale == clip.logit_scale


def test_amx_is_detected_not_assumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile amx_int8\n")
    assert has_amx(cpuinfo)
    cpuinfo.write_text("flags\t\t: fpu avx512f avx512_bf16\n")
    assert not has_amx(cpuinfo)
    assert not has_amx(tmp_path / "absent")
    for found, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("twostage.clip.precision.has_amx", lambda found=found: found)
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
        dtype, reason = preferred_dtype("cpu")
        assert dtype == expected
        assert "AMX" in reason
    assert preferred_dtype("cuda")[0] == torch.float16
    assert preferred_dtype("mps")[0] == torch.float32
