"""Two paths through the last blocks: the records, the formulas written out, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout import presets, vit
from twostage.readout.attention import AttentionError
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look, logits
from twostage.readout.methods.surgery import feature_surgery, read_gem, read_surgery
from twostage.readout.paths import fork_of

GRIDS = [(32, 32), (8, 8), (40, 56), (64, 24)]


def pixels(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def words(count: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def look(model: ClipModel, name: str, batch: Tensor, text: Tensor, **settings: Any) -> Look:
    preset = presets.find(name).with_settings(settings)
    tower = Tower(model.visual)
    knobs = fitted(preset.knobs, len(tower.blocks))
    return Look(tower, knobs, batch, text, 40.0, preset.settings)


def recorded(name: str) -> Look:
    preset = presets.find(name)
    return Look(rec.recorded_tower(), preset.knobs, rec.image(), rec.text(), 1.0, preset.settings)


@pytest.mark.golden
@torch.no_grad()
def test_clip_surgery_as_recorded() -> None:
    record = rec.case("clip_surgery")
    paths = read_surgery(recorded("clipsurgery"))
    text = rec.text()
    cosines = (paths.unit @ text.T)[0]
    surgery = feature_surgery(paths.unit, paths.unit_first, text)
    rec.compare(record, "features", paths.features)
    rec.compare(record, "cls", paths.first)
    rec.compare(record, "logits", cosines)
    rec.compare_map(record, "argmax", cosines.argmax(dim=1), 0.005)
    rec.compare(record, "surgery", surgery)
    rec.compare(record, "single", feature_surgery(paths.unit, paths.unit_first, text[:1], shared=text[1]))
    whole = logits(presets.find("clipsurgery").method, recorded("clipsurgery"))
    rec.compare(record, "surgery", whole[0].flatten(1).T)


@pytest.mark.golden
@torch.no_grad()
def test_gem_as_recorded() -> None:
    record = rec.case("gem")
    paths = read_gem(recorded("gem"), original=True)
    assert paths.original is not None
    rec.compare(record, "features", paths.features)
    rec.compare(record, "cls", paths.second_first)
    rec.compare(record, "original", paths.original)
    rec.compare(record, "logits", paths.unit @ rec.text().T)
    whole = logits(presets.find("gem").method, recorded("gem"))
    rec.compare(record, "logits", whole[0].flatten(1).T)
    rec.compare_map(record, "argmax", whole[0].flatten(1).argmax(dim=0), 0.005)


def heads_of(block: Any, tokens: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """One image's (L, D) tokens -> after ln_1, and per head its q, k and v (L, d), by plain slices."""
    normed = block.ln_1(tokens)
    packed = normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    width = tokens.shape[1]
    wide = width // block.attn.num_heads
    return normed, [
        [packed[:, part * width + head * wide : part * width + (head + 1) * wide] for part in range(3)]
        for head in range(block.attn.num_heads)
    ]


def slow_second_path(model: ClipModel, one: Tensor, positions: Any, fork: int, mix: Any) -> Tensor:
    """(3, H, W) -> (L, E), the second path of one image: heads one by one, from the formulas."""
    visual: Any = model.visual
    tokens = vit.embed(visual, one[None], positions)[0][0]
    second = tokens
    for index, block in enumerate(visual.transformer.resblocks):
        if index == fork:
            second = tokens
        if index >= fork:
            normed, heads = heads_of(block, tokens)
            mixed = torch.cat([mix(normed, *head) for head in heads], dim=1)
            second = second + mixed @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        tokens = block(tokens[None])[0]
    return torch.stack([visual.ln_post(second) @ visual.proj, visual.ln_post(tokens) @ visual.proj])


def slow_vv(normed: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (v @ v.T / v.shape[1] ** 0.5).softmax(dim=1) @ v


def slow_gem(normed: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sharpness = torch.stack([row.norm() for row in normed]).mean() / v.shape[1] ** 0.5
    total = torch.zeros_like(v)
    for part in (q, k, v):
        unit = torch.stack([row / row.norm() for row in part])
        drawn = (sharpness * unit @ unit.T).softmax(dim=1) @ unit
        unit = torch.stack([row / row.norm() for row in drawn])
        total = total + (sharpness * unit @ unit.T).softmax(dim=1) @ v
    return total / 3


@pytest.mark.parametrize("size", GRIDS)
@torch.no_grad()
def test_clip_surgery_by_hand(small: ClipModel, size: tuple[int, int]) -> None:
    batch, text = pixels(2, size), words()
    got = logits(presets.find("clipsurgery").method, look(small, "clipsurgery", batch, text))
    grid = (size[0] // 8, size[1] // 8)
    assert got.shape == (2, 5, *grid)
    for image, maps in zip(batch, got, strict=True):
        second, own = slow_second_path(small, image, "bilinear", 2, slow_vv)
        first = own[0] / own[0].norm()
        weight = (2 * text @ first).softmax(dim=0)
        weight = weight / weight.mean()
        for n in range(grid[0] * grid[1]):
            patch = second[n + 1] / second[n + 1].norm()
            product = torch.stack([weight[c] * patch * text[c] for c in range(5)])
            expected = (product - product.mean(dim=0)).sum(dim=1)
            torch.testing.assert_close(
                maps[:, n // grid[1], n % grid[1]] / 40, expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("size", GRIDS)
@torch.no_grad()
def test_gem_by_hand(small: ClipModel, size: tuple[int, int]) -> None:
    batch, text = pixels(2, size), words()
    got = logits(presets.find("gem").method, look(small, "gem", batch, text))
    for image, maps in zip(batch, got, strict=True):
        second, _ = slow_second_path(small, image, "bicubic_antialias", 2, slow_gem)
        expected = F.normalize(second[1:], dim=1) @ text.T
        torch.testing.assert_close(maps.flatten(1).T / 40, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gem_with_a_fixed_temperature_and_no_iteration(small: ClipModel) -> None:
    def plain(normed: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        units = [F.normalize(part, dim=1) for part in (q, k, v)]
        return torch.stack([(unit @ unit.T / 0.2).softmax(dim=1) @ v for unit in units]).mean(dim=0)

    batch, text = pixels(1, (40, 24)), words()
    asked = look(small, "gem", batch, text, iterations=0, temperature=0.2, blocks=12)
    second, _ = slow_second_path(small, batch[0], "bicubic_antialias", 0, plain)
    expected = F.normalize(second[1:], dim=1) @ text.T
    torch.testing.assert_close(read_gem(asked).unit[0] @ text.T, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_towers_own_path_is_untouched(small: ClipModel) -> None:
    """Rows of both paths are those of the native forward, whether or not its patches are asked for."""
    batch = pixels(2, (40, 24))
    asked = look(small, "clipsurgery", batch, words())
    native = asked.tower.native(batch, "bilinear")
    whole, short = read_surgery(asked, original=True), read_surgery(asked)
    assert short.original is None
    torch.testing.assert_close(whole.original, native[:, 1:], rtol=1e-5, atol=1e-5)
    for paths in (whole, short):
        torch.testing.assert_close(paths.first, native[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.features, short.features, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_feature_surgery_can_be_switched_off_and_spares_a_single_class(small: ClipModel) -> None:
    batch = pixels(1, (40, 24))
    method = presets.find("clipsurgery").method
    off = look(small, "clipsurgery", batch, words(), feature_surgery=False)
    cosines = 40 * (read_surgery(off).unit @ words().T)
    torch.testing.assert_close(logits(method, off).flatten(2).transpose(1, 2), cosines)
    one = logits(method, look(small, "clipsurgery", batch, words()[:1]))
    torch.testing.assert_close(one, logits(method, off)[:, :1])
    on = logits(method, look(small, "clipsurgery", batch, words()))
    torch.testing.assert_close(on.mean(dim=1), torch.zeros_like(on[:, 0]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_knobs_of_the_second_path(small: ClipModel) -> None:
    batch = pixels(1, (40, 24))
    asked = look(small, "clipsurgery", batch, words())
    turned = replace(asked, knobs=replace(asked.knobs, attention="qq"))

    def slow_qq(normed: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ q.T / q.shape[1] ** 0.5).softmax(dim=1) @ v

    second, _ = slow_second_path(small, batch[0], "bilinear", 2, slow_qq)
    torch.testing.assert_close(read_surgery(turned).features[0], second[1:], rtol=1e-4, atol=1e-5)
    quieter = replace(asked, knobs=replace(asked.knobs, suppress=(1, 2)))
    assert not torch.allclose(read_surgery(quieter).features, read_surgery(asked).features)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("clipsurgery", {"ffn": True}, "ffn has to stay False, got True.*Can be turned: attention, heads"),
        ("clipsurgery", {"class_token": 0.3}, "class_token has to stay 0.0, got 0.3"),
        (
            "gem",
            {"attention": "qq"},
            "attention has to stay .*, got 'qq'.*turned: positions, suppress",
        ),
        ("gem", {"heads": "mean"}, "heads has to stay 'each', got 'mean'"),
    ],
)
def test_knobs_without_effect_are_refused(
    small: ClipModel, name: str, knobs: dict[str, Any], message: str
) -> None:
    asked = look(small, name, pixels(1, (32, 32)), words())
    with pytest.raises(TwostageError, match=message):
        logits(presets.find(name).method, replace(asked, knobs=replace(asked.knobs, **knobs)))


def test_terms_of_other_blocks_are_refused(small: ClipModel) -> None:
    asked = look(small, "clipsurgery", pixels(1, (32, 32)), words())
    for attention in ("vv + captured(1)", "[vv + feedback]", "given"):
        turned = replace(asked, knobs=replace(asked.knobs, attention=attention))
        with pytest.raises(AttentionError, match=r"not known on the second path.*write it with vv"):
            read_surgery(turned)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": 0}, "Preset gem: blocks should be a whole number from 1 to 12 .*, got 0"),
        ({"blocks": 13}, "got 13"),
        ({"blocks": 2.5}, "got 2.5"),
        ({"iterations": -1}, "got -1 and 0.0"),
        ({"iterations": 1.5}, "got 1.5 and 0.0"),
        ({"temperature": -0.1}, "got 1 and -0.1"),
    ],
)
def test_settings_out_of_range(small: ClipModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        read_gem(look(small, "gem", pixels(1, (32, 32)), words(), **settings))


@pytest.mark.parametrize(("depth", "fork"), [(12, 6), (24, 12), (32, 16), (4, 2), (3, 1), (1, 0)])
def test_where_the_paths_part(depth: int, fork: int) -> None:
    assert fork_of(6, depth) == fork
