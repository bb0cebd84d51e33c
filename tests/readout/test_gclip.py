"""GCLIP: channels brought down without touching weights, and the blocks where global tokens emerge."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout import presets, vit
from twostage.readout.attention import blocks_of, parse
from twostage.readout.channels import Channels, loudest
from twostage.readout.engine import Tower, fitted, read
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, logits
from twostage.readout.methods.gclip import fused
from twostage.readout.stripes import emerging, fall_back, first_emerging, stripe_score, stripe_scores

GCLIP = presets.find("gclip")


def tower(depth: int = 12, sharp: int | None = None, seed: int = 0) -> Tower:
    """A small tower with one loud channel a block, and, from block `sharp` on, attention that settles on few
    patches.
    """
    torch.manual_seed(seed)
    visual: Any = VisionTransformer(32, 8, 64, depth, 4, 2.0, output_dim=32).eval().requires_grad_(False)
    with torch.no_grad():
        for index, block in enumerate(visual.transformer.resblocks):
            block.mlp.c_proj.weight[(7 * index + 3) % 64] *= 9
            block.mlp.c_proj.bias.normal_()
            if sharp is not None and index >= sharp:
                block.attn.in_proj_weight[:128] *= 12
    return Tower(visual)


def pixels(count: int = 1, size: tuple[int, int] = (32, 48), seed: int = 3) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def look(of: Tower, batch: Tensor, knobs: Knobs | None = None, **settings: Any) -> Look:
    words = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(9)), dim=1)
    preset = GCLIP.with_settings(settings)
    return Look(of, fitted(knobs or preset.knobs, len(of.blocks)), batch, words, settings=preset.settings)


# channels


def edited(of: Tower, which: tuple[int, ...], with_bias: bool = False) -> Tower:
    """A copy whose weights are changed by the formula: the longest row gets the others' mean length."""
    visual = copy.deepcopy(of.visual)
    with torch.no_grad():
        for index in which:
            last = visual.transformer.resblocks[index].mlp.c_proj
            lengths = [float(row.norm()) for row in last.weight]
            longest = max(range(64), key=lambda j: lengths[j])
            rest = [length for j, length in enumerate(lengths) if j != longest]
            factor = sum(rest) / 63 / lengths[longest]
            last.weight[longest] *= factor
            if with_bias:
                last.bias[longest] *= factor
    return Tower(visual)


@pytest.mark.parametrize("with_bias", [False, True])
def test_suppression_equals_editing_the_row(with_bias: bool) -> None:
    which, plain = (7, 8, 9, 10, 11), tower()
    before = {name: value.clone() for name, value in plain.visual.state_dict().items()}
    suppressing = Knobs(suppress=which, suppress_bias=with_bias)
    with torch.no_grad():
        got = read(plain, pixels(2), suppressing).features
        expected = read(edited(plain, which, with_bias), pixels(2), Knobs()).features
        untouched = read(plain, pixels(2), Knobs()).features
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert (got - untouched).abs().max() > 1e-2, "the factor is far from one"
    assert all(torch.equal(value, before[name]) for name, value in plain.visual.state_dict().items())


def test_a_factor_of_one_changes_nothing() -> None:
    hidden, bias = torch.randn(2, 5, 64), torch.randn(64)
    assert torch.equal(Channels((3, 9), (1.0, 1.0)).scale(hidden.clone(), bias), hidden)
    assert torch.equal(Channels((3,), (1.0,), with_bias=True).scale(hidden.clone(), bias), hidden)


def test_without_a_bias_the_output_is_scaled() -> None:
    hidden = torch.ones(1, 2, 4)
    assert Channels((1,), (0.25,)).scale(hidden, None)[0, 0].tolist() == [1.0, 0.25, 1.0, 1.0]


def test_the_loudest_channel() -> None:
    block = tower().blocks[2]
    found = loudest(block)
    assert found.index == (17,)
    assert 0.05 < found.factor[0] < 0.2


def test_suppressed_channels_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    of = tower()
    with caplog.at_level(logging.INFO, "twostage"):
        for _ in range(2):
            logits(GCLIP.method, look(of, pixels()))
    lines = [line for line in caplog.messages if "Suppressed channels" in line]
    assert len(lines) == 1
    for block in (7, 8, 9, 10, 11):
        assert f"block {block}: {(7 * block + 3) % 64} x 0.1" in lines[0]


def test_a_tower_of_another_depth_suppresses_what_lies_there() -> None:
    suppressed = {depth: fitted(GCLIP.knobs, depth).suppress for depth in (3, 6, 12, 24)}
    assert suppressed == {3: (2,), 6: (3, 4, 5), 12: (7, 8, 9, 10, 11), 24: tuple(range(14, 24))}


@pytest.mark.parametrize(
    "knobs",
    [{"attention": "captured(11)"}, {"attention": "captured_csa(3, 12)"}, {"suppress": (3, 12)}],
)
def test_blocks_that_are_not_there(knobs: dict[str, Any]) -> None:
    for depth in (12, 24):
        with pytest.raises(TwostageError, match=r"block 1[12] cannot be used.* 0 to 10 .* 0 to 11"):
            fitted(Knobs(**knobs), depth)


# emerging blocks


def test_stripe_score_of_plain_maps() -> None:
    even = torch.full((1, 10, 10), 0.1)
    assert torch.allclose(stripe_score(even), torch.tensor([0.9])), "the class token has its share"
    stripe = torch.zeros(2, 10, 10)
    stripe[0, :, 4] = 1
    stripe[1, :, 0] = 1
    assert stripe_score(stripe).tolist() == [9.0, 0.0]


def test_scores_against_torch(small: ClipModel) -> None:
    visual: Any = small.visual
    got = stripe_scores(Tower(visual), pixels(2, (40, 24)), "bicubic")
    with torch.no_grad():
        tokens, _ = vit.embed(visual, pixels(2, (40, 24)))
        for index, block in enumerate(visual.transformer.resblocks[:-1]):
            y = block.ln_1(tokens)
            mean_map = block.attn(y, y, y, average_attn_weights=True)[1]
            for image in range(2):
                columns = [float(mean_map[image, 1:, j].mean()) for j in range(1, 16)]
                torch.testing.assert_close(float(got[image, index]), 15 * max(columns), rtol=1e-4, atol=1e-5)
            tokens = block(tokens)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 1, 2, 1, 4, 6, 9, 9, 9, 9], 6),
        ([1, 2, 1, 2, 1, 4, 5, 5, 5, 5, 5], None),
        ([2, 2, 2, 2, 2, 9, 9, 9, 9, 10, 10.1], 10),
        ([1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1], 1),
        ([1.0] * 5 + [9.0] * 18, 12),
        ([1.0] * 15 + [9.0] + [1.0] * 7, 15),
        ([1.0] * 5 + [9.0] + [1.0] * 17, None),
    ],
)
def test_the_rule(scores: list[float], expected: int | None) -> None:
    assert first_emerging(torch.tensor(scores, dtype=torch.float32)) == expected


def test_fewer_times_find_more() -> None:
    scores = torch.tensor([1.0, 1, 1, 1, 1, 3, 4, 4, 4, 4, 4])
    assert [first_emerging(scores, times) for times in (5.0, 3.5, 2.0)] == [None, 6, 5]


def test_the_middle_is_the_fall_back() -> None:
    assert {depth: fall_back(depth) for depth in (3, 12, 24, 32)} == {3: 1, 12: 6, 24: 12, 32: 16}


def test_blocks_are_found_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    of = tower(sharp=8)
    with caplog.at_level(logging.INFO, "twostage"):
        first = look(of, pixels(4, (64, 64)), blocks="auto", times=2.0)
        scores = stripe_scores(of, first.pixels).mean(dim=0)
        assert first_emerging(scores, 2.0) == 8, scores
        auto = logits(GCLIP.method, first)
        later = look(of, torch.zeros(1, 3, 32, 32), blocks="auto", times=2.0)
        assert blocks_of(parse(fused(later)), "captured") == [(8,), (9,)], "found on the first images"
        assert emerging(of, later.pixels, 2.0) == 8
    lines = [line for line in caplog.messages if "Global tokens" in line]
    assert len(lines) == 1
    assert "emerge in block 8 (4 images; stripe scores of blocks 0 to 10: " in lines[0]
    assert f"{float(scores[8]):.2f}" in lines[0]
    named = replace(GCLIP.knobs, attention="1/3 * qq + 1/3 * captured(8) + 1/3 * captured(9)")
    assert torch.equal(auto, logits(GCLIP.method, look(of, first.pixels, named)))


def test_no_block_stands_out(caplog: pytest.LogCaptureFixture) -> None:
    of = tower()
    with caplog.at_level(logging.INFO, "twostage"):
        got = logits(GCLIP.method, look(of, pixels(2), blocks="auto"))
    assert "emerge in no block: block 6 is taken (2 images" in caplog.text
    assert torch.equal(got, logits(GCLIP.method, look(of, pixels(2))))


@pytest.mark.parametrize(("depth", "blocks"), [(12, [6, 7]), (24, [12, 13]), (32, [16, 17]), (4, [2, 2])])
def test_blocks_of_other_depths(depth: int, blocks: list[int]) -> None:
    groups = parse(fused(look(tower(depth), pixels())))
    found = [int(block) for group in groups for term in group.terms[:1] for block in term.arguments]
    assert found == blocks
    assert sum(group.weight for group in groups) == pytest.approx(1)


def test_an_attention_of_ones_own_keeps_its_blocks() -> None:
    own = replace(GCLIP.knobs, attention="0.5 * kk + 0.5 * captured(8)")
    assert blocks_of(parse(fused(look(tower(24), pixels(), own))), "captured") == [(17,)]
    assert blocks_of(parse(fused(look(tower(12), pixels(), own))), "captured") == [(8,)]
    assert blocks_of(parse(fused(look(tower(12), pixels(), own, blocks="auto"))), "captured") == [(6,)]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"blocks": "aut"}, "unknown blocks 'aut'. Did you mean 'auto'"),
        ({"bias": "keep"}, "Did you mean 'kept'"),
        ({"times": "five"}, "times should be a number"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(TwostageError, match=reason):
        GCLIP.with_settings(settings)


def test_the_bias_setting_and_heads_change_the_answer() -> None:
    of = tower()
    plain = logits(GCLIP.method, look(of, pixels()))
    for other in (
        look(of, pixels(), bias="scaled"),
        look(of, pixels(), replace(GCLIP.knobs, heads="each")),
        look(of, pixels(), replace(GCLIP.knobs, keys="patches")),
        look(of, pixels(), replace(GCLIP.knobs, suppress=())),
    ):
        assert (logits(GCLIP.method, other) - plain).abs().max() > 1e-4
