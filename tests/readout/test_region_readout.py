"""CorrCLIP and region embeddings: against their formulas written out for one image, and what is left when
there are no masks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout import presets, regions, vit
from twostage.readout.engine import Tower, fitted, read
from twostage.readout.guest import features, likeness, resized
from twostage.readout.look import Look, logits
from twostage.readout.methods.corrclip import corrclip

SIZE = (40, 56)
GRID = (5, 7)


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(3))


def words(count: int = 6) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def guest(rgb: Tensor) -> Tensor:
    """(B, 4, 10, 14): waves of the colours, different in every image."""
    small = F.adaptive_avg_pool2d(rgb, (10, 14))
    small = (small - small.mean(dim=(2, 3), keepdim=True)) * 20
    draw = torch.randn(4, 3, generator=torch.Generator().manual_seed(12))
    return torch.sin(torch.einsum("oc,bchw->bohw", draw, small))


def many() -> Tensor:
    """Overlapping, nested, empty, thin and full masks; something stays uncovered."""
    masks = torch.zeros(7, *SIZE, dtype=torch.bool)
    masks[0, :24, :32] = True
    masks[1, 8:16, 8:24] = True
    masks[2, 20:40, 30:50] = True
    masks[4, 3, 5:50] = True
    masks[5, 30:40, :12] = True
    masks[6, :30, 40:] = True
    return masks


def few() -> Tensor:
    """Two soft masks."""
    masks = torch.zeros(2, *SIZE)
    masks[0, :, :20] = 0.9
    masks[1, 10:30, 16:] = 0.7
    return masks


def look(small: ClipModel, batch: Tensor, masks: list[Tensor] | None, **settings: Any) -> Look:
    tower, preset = Tower(small.visual), presets.find("corrclip")
    made = preset.with_settings(settings)
    return Look(tower, fitted(made.knobs, 4), batch, words(), 40.0, made.settings, guest=guest, regions=masks)


def slow_membership(masks: Tensor) -> list[int]:
    """The smallest mask that covers half of a patch of 8 pixels, or -1."""
    cells = [(8 * y, 8 * x) for y in range(5) for x in range(7)]
    share = [[float(m[y : y + 8, x : x + 8].float().mean()) for y, x in cells] for m in masks]
    found = []
    for place in range(35):
        over = [at for at in range(len(masks)) if share[at][place] >= 0.5]
        found.append(min(over, key=lambda at: sum(share[at])) if over else -1)
    return found


def slow_merge(member: list[int], rows: Tensor, reach: float) -> list[int]:
    """Chains of regions whose mean features lie within `reach` in cosine distance, under one number."""
    number = {at: at for at in set(member) - {-1}}
    mean = {at: rows[[n for n in range(len(member)) if member[n] == at]].mean(0) for at in number}
    changed = True
    while changed:
        changed = False
        for a in number:
            for b in number:
                near = 1 - float(F.cosine_similarity(mean[a], mean[b], dim=0)) <= reach
                if near and number[a] != number[b]:
                    number[a] = number[b] = min(number[a], number[b])
                    changed = True
    return [number.get(at, -1) for at in member]


def slow_corrclip(
    small: ClipModel, image: Tensor, seen: Tensor, masks: Tensor, settings: Any
) -> tuple[Tensor, list[int], list[int]]:
    """(T, 5, 7) of one image, its patches' masks, and their merged regions; seen: (C, 10, 14) of guests."""
    visual: Any = small.visual
    blocks, last = visual.transformer.resblocks, visual.transformer.resblocks[-1]
    rows = F.interpolate(seen[None], GRID, mode="bilinear", align_corners=False)[0].flatten(1).T
    single = slow_membership(masks)
    member = slow_merge(single, rows, settings["merge"])
    alike = F.cosine_similarity(rows[:, None], rows[None], dim=-1)

    def attended(tokens: Tensor) -> Tensor:
        """(N, D) through the last block's values and output."""
        value = last.ln_1(tokens) @ last.attn.in_proj_weight[128:].T + last.attn.in_proj_bias[128:]
        out = torch.zeros(35, 64)
        for a in range(35):
            if member[a] >= 0:
                keys = [b for b in range(35) if member[b] == member[a]]
            else:
                keys = [b for b in range(35) if alike[a, b] > alike.mean()]
            out[a] = (4 * alike[a, keys]).softmax(0) @ value[keys]
        return last.attn.out_proj(out)  # type: ignore[no-any-return]

    with torch.no_grad():
        tokens, _ = vit.embed(visual, image[None], "bicubic_scale")
        inputs = [tokens[0]]
        for block in blocks[:-1]:
            inputs.append(block(inputs[-1][None])[0])
        # blocks 5 to 9 of twelve are blocks 1 and 2 of four here, block 2 being the last but one
        first, end = fitted(presets.find("corrclip").knobs, 4).levels or (0, 0)
        spatial = attended(torch.stack(inputs[first + 1 : end + 1]).mean(0)[1:])
        semantic = torch.zeros(35, 64)
        for region in set(member) - {-1}:
            inside = [1 + n for n in range(35) if member[n] == region]
            copy = inputs[0][:1]
            for block, own in zip(blocks, inputs, strict=True):
                weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
                q = block.ln_1(copy) @ weight[:64].T + bias[:64]
                k, v = (block.ln_1(own[inside]) @ weight[a : a + 64].T + bias[a : a + 64] for a in (64, 128))
                heads = []
                for at in range(0, 64, 16):
                    share = (q[:, at : at + 16] @ k[:, at : at + 16].T / 4).softmax(1)
                    heads.append(share @ v[:, at : at + 16])
                copy = copy + block.attn.out_proj(torch.cat(heads, dim=1))
                copy = copy + block.mlp(block.ln_2(copy))
            for place in inside:
                semantic[place - 1] = (visual.ln_post(copy) if settings["norm"] == "all" else copy)[0]
        spatial = visual.ln_post(spatial) if settings["norm"] == "all" else spatial
        x = visual.ln_post(attended(inputs[-1][1:]))
        x = x + settings["spatial_weight"] * spatial + settings["semantic_weight"] * semantic
        scores = F.normalize(x @ visual.proj, dim=1) @ words().T
    return 40 * scores.T.reshape(-1, *GRID), single, member


@pytest.mark.parametrize("norm", ["main", "all"])
@pytest.mark.parametrize("merge", [0.01, 0.2])
def test_corrclip_by_hand_and_batches_with_different_numbers_of_masks(
    small: ClipModel, norm: str, merge: float
) -> None:
    masks = [many(), few(), many()[[3]], many()[:0]]
    batch = pixels(4)
    asked = look(small, batch, masks, norm=norm, merge=merge)
    found = logits(corrclip, asked)
    sizes = []
    for place, (image, own) in enumerate(zip(batch, masks, strict=True)):
        seen = guest(asked.rgb[place : place + 1])[0]
        expected, single, member = slow_corrclip(small, image, seen, own, asked.settings)
        torch.testing.assert_close(found[place], expected, rtol=1e-3, atol=2e-3)
        alone = look(small, image[None], [own], norm=norm, merge=merge)
        torch.testing.assert_close(logits(corrclip, alone)[0], found[place], rtol=1e-4, atol=1e-3)
        sizes.append((len(set(single) - {-1}), len(set(member) - {-1}), single.count(-1)))
    assert sizes[0][0] == 5, "the empty and the thin mask have no patch"
    assert sizes[1][0] == 2
    assert sizes[2] == sizes[3] == (0, 0, 35)
    assert 0 < sizes[0][2] < 35
    assert (sizes[0][1] < 5) == (merge == 0.2), "some merge within .2, none within .01"


def test_branches_can_be_switched_off(small: ClipModel) -> None:
    """With the main branch alone, one mask over everything is the guest's plain attention."""
    batch, everything = pixels(2), [torch.ones(1, *SIZE, dtype=torch.bool)] * 2
    asked = look(small, batch, everything, spatial_weight=0, semantic_weight=0)
    plain = 4 * likeness(resized(features(asked), GRID))[:, None]
    reading = asked.read(given={"guest": plain}, levels=None)
    expected = 40 * asked.cosines(reading).transpose(1, 2).unflatten(2, GRID)
    torch.testing.assert_close(logits(corrclip, asked), expected, rtol=1e-4, atol=1e-3)


def test_every_mask_takes_its_mode(small: ClipModel) -> None:
    batch, masks = pixels(2), [many(), few()[:0]]
    before = logits(corrclip, look(small, batch, masks))
    after = logits(corrclip, look(small, batch, masks, mask_vote=1))
    assert torch.equal(after[1], before[1]), "no masks, no vote"
    labels, single = before[0].argmax(0).flatten().tolist(), slow_membership(masks[0])
    changed = 0
    for place in range(35):
        got, old = after[0].flatten(1)[:, place], before[0].flatten(1)[:, place]
        torch.testing.assert_close(got.sort().values, old.sort().values)
        votes = [labels[n] for n in range(35) if single[n] == single[place] >= 0]
        assert not votes or votes.count(int(got.argmax())) == max(votes.count(one) for one in votes)
        if not votes:
            assert torch.equal(got, old)
        changed += int(got.argmax()) != labels[place]
    assert changed > 0


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "was given none: set PROPOSALS.NAME"),
        ([many()], r"expected masks \(R, 40, 56\) for each of 2 images, got those of 1"),
        ([many(), many()[:, 1:]], r"got \(7, 39, 56\)"),
        ([many(), many()[0]], r"got \(40, 56\)"),
    ],
)
def test_masks_have_to_fit(small: ClipModel, masks: list[Tensor] | None, message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        logits(corrclip, look(small, pixels(2), masks))


def test_regions_are_of_patches(small: ClipModel) -> None:
    asked = look(small, pixels(1), [many()])
    with pytest.raises(TwostageError, match="corrclip: keys is 'patches' in this method, got 'all'"):
        logits(corrclip, replace(asked, knobs=replace(asked.knobs, keys="all")))


def slow_pooled(small: ClipModel, tokens: Tensor, weights: Tensor) -> Tensor:
    """(E,) of one mask; tokens: (N, D) patches entering the last block."""
    visual: Any = small.visual
    last = visual.transformer.resblocks[-1]
    total = torch.zeros(64)
    for token, weight in zip(tokens, weights, strict=True):
        total += weight * (last.attn.in_proj_weight[128:] @ last.ln_1(token) + last.attn.in_proj_bias[128:])
    out = last.attn.out_proj(total)
    out = out + last.mlp(last.ln_2(out))
    return F.normalize(visual.ln_post(out) @ visual.proj, dim=0)


@pytest.mark.parametrize("least", [None, 0.07, 0.4])
def test_pooling_of_values(small: ClipModel, least: float | None) -> None:
    tower = Tower(small.visual)
    share = [regions.shares(many(), GRID), regions.shares(few(), GRID), regions.shares(many()[:0], GRID)]
    dropped = 0
    with torch.no_grad():
        record = read(tower, pixels(3), presets.find("maskclip").knobs).record
        found = regions.pooled(tower, record, share, least)
        assert [tuple(one.shape) for one in found] == [(7, 32), (2, 32), (0, 32)]
        for tokens, weights, got in zip(record.entering[:, 1:], share, found, strict=True):
            kept = weights.clone()
            if least is not None and len(weights):
                each = [slow_pooled(small, tokens, one) for one in weights]
                for n in range(35):
                    patch = slow_pooled(small, tokens, torch.eye(35)[n])
                    mine = [float(patch @ e) for e, w in zip(each, weights, strict=True) if w[n] >= 0.5]
                    others = [float(patch @ e) for e, w in zip(each, weights, strict=True) if w[n] < 0.5]
                    if mine and others and sum(mine) / len(mine) - sum(others) / len(others) < least:
                        kept[:, n], dropped = 0, dropped + 1
                for at in range(len(weights)):
                    kept[at] = weights[at] if kept[at].sum() == 0 else kept[at]
            for row, weight in zip(got, kept, strict=True):
                torch.testing.assert_close(row, slow_pooled(small, tokens, weight), rtol=1e-3, atol=1e-4)
    assert (dropped > 0) == (least is not None)


def test_votes_and_members_by_hand() -> None:
    share = torch.tensor([[0.9, 0.5, 0.0, 0.49], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.2, 0.49]])
    assert regions.membership(share).tolist() == [0, 1, -1, -1]
    assert regions.membership(share[:0]).tolist() == [-1] * 4
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [1.0, 0.1], [5.0, 5.0]])
    member = torch.tensor([4, 1, 7, 9, -1])
    apart = regions.merged(member, rows, 0.1).tolist()
    assert apart[0] == apart[3], "nearly the same direction"
    assert len({apart[0], apart[1], apart[2]}) == 3
    assert apart[4] == -1
    chain = regions.merged(member, rows, 0.45)
    assert chain.tolist() == [0, 0, 0, 0, -1], "4 and 7 are far apart, 1 lies between them"
    none = torch.full((3,), -1)
    assert torch.equal(regions.merged(none, rows[:3], 0.2), none)
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.6], [0.8, 0.3], [0.1, 0.7]])
    voted = regions.mode_vote(scores, torch.tensor([0, 0, 0, -1]))
    assert voted.tolist() == [
        scores[0].tolist(),
        scores[1].flip(0).tolist(),
        scores[2].tolist(),
        scores[3].tolist(),
    ]
    assert torch.equal(regions.mode_vote(scores, torch.full((4,), -1)), scores)
