"""The terms of an attention by hand: captured maps, groups and their weights, places, turned keys."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.ops.procrustes import centred, rotation
from twostage.readout import vit
from twostage.readout.attention import AttentionError, parse
from twostage.readout.engine import Tower, read
from twostage.readout.knobs import Knobs
from twostage.readout.record import Record, Wanted
from twostage.readout.terms import Scene, attend, closed_below, gauss, masked_softmax

GRID = (3, 5)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scene(with_class: bool = True, **given: Tensor) -> Scene:
    """Two images, three heads of width 4; values are one-hot rows, so that a mixture is the map itself."""
    length = 16 if with_class else 15
    maps = numbers(2, 3, 16, 16, seed=4).softmax(dim=-1)
    record = Record(numbers(2, 16, 12), {1: numbers(2, 16, 12, seed=5)}, {(0, 1): maps})
    values = torch.eye(length).expand(2, 3, length, length)
    q, k = numbers(2, 3, length, 4, seed=1), numbers(2, 3, length, 4, seed=2)
    return Scene(q, k, values, GRID, with_class, record, given)


# captured maps, rows and weights (the early blocks leave what torch's own attention gives)


def test_captured_maps_are_torchs(small: ClipModel) -> None:
    visual: Any = small.visual
    wanted = Wanted(frozenset({0, 2}), ((0,), (1, 2)), ((0, 2),), looks=True)
    batch = numbers(2, 3, 40, 24)
    with torch.no_grad():
        record = read(Tower(visual), batch, Knobs(positions="bicubic"), also=wanted).record
        tokens, _ = vit.embed(visual, batch)
        maps, own = [], []
        for index, block in enumerate(visual.transformer.resblocks[:-1]):
            y = block.ln_1(tokens)
            maps.append(block.attn(y, y, y, average_attn_weights=False)[1])
            packed = y @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
            q, k = (packed[..., s : s + 64].unflatten(2, (4, 16)).transpose(1, 2) for s in (0, 64))
            own.append((q @ q.mT / 4).softmax(dim=-1) + (k @ k.mT / 4).softmax(dim=-1))
            tokens = block(tokens)
            if index in wanted.tokens:
                torch.testing.assert_close(record.tokens[index], tokens, rtol=1e-4, atol=1e-5)
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(record.maps[(0,)], maps[0], **close)
    torch.testing.assert_close(record.maps[(1, 2)], (maps[1] + maps[2]) / 2, **close)
    torch.testing.assert_close(record.self_maps[(0, 2)], (own[0] + own[2]) / 2, **close)
    assert record.looks is not None
    mean = maps[2].mean(dim=1)
    torch.testing.assert_close(record.looks[0], mean[:, 0, 1:], **close)
    torch.testing.assert_close(record.looks[1], torch.stack([one.diag()[1:] for one in mean]), **close)
    assert set(record.tokens) == {0, 2}


def test_one_map_for_all_heads_is_kept_alone(small: ClipModel) -> None:
    batch = numbers(1, 3, 32, 32)
    with torch.no_grad():
        each = read(Tower(small.visual), batch, Knobs("captured(1)")).record.maps[(1,)]
        mean = read(Tower(small.visual), batch, Knobs("captured(1)", heads="mean")).record.maps[(1,)]
    assert mean.shape == (1, 1, 17, 17)
    torch.testing.assert_close(mean[:, 0], each.mean(dim=1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mean_heads", [False, True])
@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("qk", 1),
        ("qq + kk", 2),
        ("1/3 * qq + 1/3 * captured(0, 1) + 1/3 * kk", 1),
        ("0.8 * [kk + gauss(5)] + 1.2 * captured(0, 1)", 2),
        ("[qk_procrustes(5) + 0.08 * kk_centred]", 1),
        ("0.25 * identity + 0.5 * vv", 0.75),
    ],
)
def test_rows_sum_to_the_weights(text: str, total: float, mean_heads: bool) -> None:
    found = attend(parse(text), scene(), mean_heads)
    torch.testing.assert_close(found.sum(dim=-1), torch.full((2, 3, 16), float(total)))


def test_similarity_rows_sum_to_one_and_close_what_is_below_the_mean() -> None:
    one = scene(with_class=False)
    found = attend(parse("similarity(1, 1, 3)"), one)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, 3, 15))
    unit = one.record.tokens[1][:, 1:] / one.record.tokens[1][:, 1:].norm(dim=-1, keepdim=True)
    alike = unit @ unit.mT
    for image in range(2):
        for i in range(15):
            above = [j for j in range(15) if alike[image, i, j] >= alike[image].mean()]
            powers = {j: math.exp(3 * float(alike[image, i, j] - alike[image].mean())) for j in above}
            for j in range(15):
                expected = powers.get(j, 0.0) / sum(powers.values())
                assert float(found[image, 0, i, j]) == pytest.approx(expected, abs=1e-5)


def test_a_group_is_the_softmax_of_its_weighted_sum() -> None:
    one = scene()
    assert one.k is not None
    found = attend(parse("2 * [1.2 * kk + 0.5 * gauss(2)]"), one)
    logits = 1.2 * (one.k @ one.k.mT / 2) + 0.5 * gauss(GRID, 2.0, True)
    torch.testing.assert_close(found, 2 * logits.softmax(dim=-1), rtol=1e-5, atol=1e-6)


def test_mean_heads_mix_with_the_mean_map() -> None:
    one = scene()
    assert one.q is not None
    found = attend(parse("qq"), one, mean_heads=True)
    mean = (one.q @ one.q.mT / 2).softmax(dim=-1).mean(dim=1)
    for head in range(3):
        torch.testing.assert_close(found[:, head], mean, rtol=1e-5, atol=1e-6)


def test_captured_without_the_class_token_is_cut() -> None:
    one = scene(with_class=False)
    found = attend(parse("captured(0, 1)"), one)
    torch.testing.assert_close(found, one.record.maps[(0, 1)][..., 1:, 1:])


def test_terms_from_outside() -> None:
    bias = numbers(1, 1, 16, 16, seed=8)
    found = attend(parse("[0.5 * feedback + guest]"), scene(feedback=bias, guest=2 * bias))
    torch.testing.assert_close(found[1, 2], (2.5 * bias[0, 0]).softmax(dim=-1), rtol=1e-5, atol=1e-6)
    given = bias.softmax(dim=-1)
    torch.testing.assert_close(attend(parse("given"), scene(map=given))[0, 1], given[0, 0])
    with pytest.raises(AttentionError, match="'feedback' has to be given from outside"):
        attend(parse("feedback"), scene())


def test_closed_rows_look_at_themselves() -> None:
    logits = torch.zeros(1, 1, 4, 4)
    logits[..., 2, :] = -torch.inf
    logits[..., 1, 3] = -torch.inf
    found = masked_softmax(logits)[0, 0]
    assert found[2].tolist() == [0, 0, 1, 0]
    torch.testing.assert_close(found[1], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert found[0].tolist() == [0.25] * 4
    assert closed_below(torch.eye(2)[None], 1.0, 3.0).tolist() == [[[1.5, -math.inf], [-math.inf, 1.5]]]


# places


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (1, 5)])
def test_gauss(grid: tuple[int, int]) -> None:
    found = gauss(grid, 5.0, True)
    assert torch.equal(found, found.T)
    assert not found[0].any()
    assert not found[:, 0].any()
    assert torch.equal(found.diag()[1:], torch.ones(grid[0] * grid[1]))
    assert float(found.max()) == 1
    for i in range(grid[0] * grid[1]):
        for j in range(grid[0] * grid[1]):
            (a, b), (c, d) = divmod(i, grid[1]), divmod(j, grid[1])
            expected = math.exp(-((a - c) ** 2 + (b - d) ** 2) / 50)
            assert float(found[1 + i, 1 + j]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(gauss(grid, 5.0, False), found[1:, 1:])


# turned keys


def test_the_exact_rotation_is_orthogonal_and_undoes_a_turn() -> None:
    q = numbers(2, 3, 40, 8)
    turn = torch.linalg.qr(numbers(8, 8, seed=6))[0]
    k = q @ turn
    rotated = k @ rotation(*centred(q, k, True), 0)
    torch.testing.assert_close(q @ rotated.mT, q @ q.mT, rtol=1e-4, atol=1e-4)
    other = rotation(*centred(q, numbers(2, 3, 40, 8, seed=7), True), 0)
    torch.testing.assert_close(other.mT @ other, torch.eye(8).expand(2, 3, 8, 8), rtol=1e-4, atol=1e-5)


def test_more_steps_come_closer_to_the_exact_rotation() -> None:
    q, k = numbers(1, 1, 60, 8), numbers(1, 1, 60, 8, seed=7)
    exact = rotation(*centred(q, k, True), 0)
    away = [float((rotation(*centred(q, k, True), steps) - exact).norm()) for steps in (1, 5, 25)]
    assert away[0] > away[1] > away[2]
    assert away[2] < 0.05


def test_centres_leave_out_the_class_token() -> None:
    q, k = numbers(9, 4), numbers(9, 4, seed=1)
    rest_q, rest_k = centred(q, k, True)
    weight = [0.0] + [float(one.norm()) for one in q[1:]]
    mean = sum(w * one for w, one in zip(weight, k, strict=True)) / sum(weight)
    torch.testing.assert_close(rest_k, k - mean, rtol=1e-5, atol=1e-6)
    assert centred(q, k, False)[0].shape == rest_q.shape
