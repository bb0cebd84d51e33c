"""TagCLIP: the records, the formulas written out image by image, and what is refused."""

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
from twostage.ops.boxes import enclosed
from twostage.readout import presets, vit
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look, logits
from twostage.readout.methods import tagclip
from twostage.readout.methods.tagclip import first_row, spread, tag_scores, tags

METHOD = presets.find("tagclip").method
GRIDS = [(32, 32), (8, 8), (40, 56), (8, 40)]


def pixels(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def words(count: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def look(tower: Tower, batch: Tensor, text: Tensor, **settings: Any) -> Look:
    preset = presets.find("tagclip").with_settings(settings)
    return Look(tower, fitted(preset.knobs, len(tower.blocks)), batch, text, 40.0, preset.settings)


@pytest.mark.golden
@torch.no_grad()
def test_as_recorded() -> None:
    record = rec.case("tagclip_l2g")
    scale = record["options"]["logit_scale"]
    asked = look(rec.recorded_tower(), rec.image(), rec.text(), sharpness=scale)
    found = spread(asked)
    cosines = F.normalize(found.features[0], dim=1) @ rec.text().T
    rec.compare(record, "features", found.features)
    rec.compare(record, "logits", cosines)
    rec.compare_map(record, "argmax", cosines.argmax(dim=1), 0.005)
    rec.compare(record, "probabilities", found.probabilities)
    rec.compare(record, "affinity", found.affinity)
    rec.compare(record, "propagated", found.propagated)
    rec.compare(record, "refined", found.refined)
    rec.compare(record, "tag_scores_before", tags(asked, 7, again=False))
    rec.compare(record, "tag_scores", tags(asked, 7))
    best = logits(METHOD, asked)[0].flatten(1).argmax(dim=0)
    assert torch.equal(best, found.refined[0].argmax(dim=1)), "logits keep the order of probabilities"


def slow_refined(model: ClipModel, one: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """(3, H, W) -> (N, T) refined probabilities and (N, N) affinity of one image, from the formulas."""
    visual: Any = model.visual
    tokens, grid = vit.embed(visual, one[None], "bilinear")
    maps = []
    for block in visual.transformer.resblocks:
        y = block.ln_1(tokens)
        _, weights = block.attn(y, y, y, average_attn_weights=True)
        maps.append(weights[0, 1:, 1:])
        entering, tokens = tokens, block(tokens)
    wide = entering.shape[2]
    value = y @ block.attn.in_proj_weight[2 * wide :].T + block.attn.in_proj_bias[2 * wide :]
    x = entering + value @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
    x = x + block.mlp(block.ln_2(x))
    features = F.normalize((visual.ln_post(x) @ visual.proj)[0, 1:], dim=1)
    probabilities = (100 * features @ text.T).softmax(dim=1)
    votes = sum((one > one.mean()).int() for one in maps)
    affinity = maps[2] * (votes >= 1)  # of twelve blocks 8-10 and 4 votes: of four, block 2 and one
    spread_ = affinity @ probabilities
    refined = torch.zeros_like(spread_)
    for c in range(len(text)):
        likely = (spread_[:, c] > spread_[:, c].mean()).reshape(1, *grid)
        refined[:, c] = affinity @ (probabilities[:, c] * enclosed(likely).flatten())
    return refined, affinity


@pytest.mark.parametrize("size", GRIDS)
@torch.no_grad()
def test_the_first_look_by_hand(small: ClipModel, size: tuple[int, int]) -> None:
    batch = pixels(2, size)
    asked = look(Tower(small.visual), batch, words())
    found, maps = spread(asked), logits(METHOD, asked)
    assert maps.shape == (2, 5, *found.grid)
    for index, one in enumerate(batch):
        refined, affinity = slow_refined(small, one, words())
        torch.testing.assert_close(found.affinity[index], affinity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.refined[index], refined, rtol=1e-3, atol=1e-5)
        share = refined.clamp_min(1e-6)
        expected = (share / share.sum(dim=1, keepdim=True)).log()
        torch.testing.assert_close(maps[index].flatten(1).T, expected, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_a_weak_place_needs_enough_blocks() -> None:
    """Twelve blocks: what fewer than four hold above their mean is dropped, and nothing else."""
    found = spread(look(rec.recorded_tower(), rec.image(), rec.text()))
    dropped = (found.affinity == 0).float().mean()
    assert 0.2 < dropped < 0.8


def slow_first_row(model: ClipModel, one: Tensor, inside: Tensor) -> Tensor:
    """(3, H, W), (N,) bool -> (E,), the class token limited by adding -1000 to its logits outside."""
    visual: Any = model.visual
    tokens = vit.embed(visual, one[None], "bilinear")[0][0]
    bias = torch.zeros(len(tokens), len(tokens))
    bias[0, 1:][~inside] = -1000
    for block in visual.transformer.resblocks:
        packed = block.ln_1(tokens) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        mixed = []
        for head in range(4):
            q, k, v = (packed[:, part * 64 + head * 16 : part * 64 + head * 16 + 16] for part in range(3))
            mixed.append((q @ k.T / 4 + bias).softmax(dim=1) @ v)
        joined = torch.cat(mixed, dim=1)
        tokens = tokens + joined @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        tokens = tokens + block.mlp(block.ln_2(tokens))
    row: Tensor = (visual.ln_post(tokens) @ visual.proj)[0]
    return row


@torch.no_grad()
def test_a_class_token_limited_to_a_region(small: ClipModel) -> None:
    batch = pixels(2, (32, 32))
    inside = torch.rand(2, 16, generator=torch.Generator().manual_seed(1)) < 0.3
    asked = look(Tower(small.visual), batch, words())
    got = first_row(asked, batch, inside)
    for one, mask, row in zip(batch, inside, got, strict=True):
        torch.testing.assert_close(row, slow_first_row(small, one, mask), rtol=1e-4, atol=1e-5)
    everywhere = first_row(asked, batch, torch.ones(2, 16, dtype=torch.bool))
    torch.testing.assert_close(everywhere, asked.tower.native(batch, "bilinear")[:, 0], rtol=1e-4, atol=1e-5)
    nowhere = first_row(asked, batch, torch.zeros(2, 16, dtype=torch.bool))
    assert nowhere.isfinite().all(), "it looks at itself"


@pytest.mark.parametrize("size", [(40, 56), (64, 24)])
@torch.no_grad()
def test_the_second_look_by_hand(small: ClipModel, size: tuple[int, int]) -> None:
    batch, text = pixels(2, size), words(8)
    asked = look(Tower(small.visual), batch, text, empty_box="skip")
    found = spread(asked)
    before, after = tags(asked, 6, again=False), tags(asked, 6)
    torch.testing.assert_close(before, found.refined[..., :6].amax(dim=1))
    looked = 0
    for image in range(2):
        lowest, highest = float(before[image].min()), float(before[image].max())
        for tag in range(6):
            expected = float(before[image, tag])
            mask = found.refined[image, :, tag].reshape(size[0] // 8, size[1] // 8)
            mask = (mask - mask.min()) / (mask.max() - mask.min()) > 0.5
            places = mask.nonzero().tolist()
            top, left = (min(place[axis] for place in places) for axis in (0, 1))
            bottom = min(max(place[0] for place in places) + 1, size[0] // 8 - 1)
            right = min(max(place[1] for place in places) + 1, size[1] // 8 - 1)
            if expected > lowest + 0.5 * (highest - lowest) and top < bottom and left < right:
                crop = batch[image : image + 1, :, top * 8 : bottom * 8, left * 8 : right * 8]
                crop = F.interpolate(crop, size=(32, 32), mode="bilinear", align_corners=False)[0]
                region = F.interpolate(mask[None, None, top:bottom, left:right].float(), size=(4, 4))
                row = slow_first_row(small, crop, region.flatten() > 0)
                expected = (expected + float((100 * F.normalize(row, dim=0) @ text.T).softmax(0)[tag])) / 2
                looked += 1
            assert float(after[image, tag]) == pytest.approx(expected, abs=2e-4)
    assert looked >= 2


@torch.no_grad()
def test_an_empty_box_ends_the_second_look_of_its_image_as_released(small: ClipModel) -> None:
    """Class 0 stands in the last row only, class 1 inside; both are likely."""
    asked = look(Tower(small.visual), pixels(2, (32, 32)), words(3))
    found = spread(asked)
    refined = torch.zeros(2, 16, 3)
    refined[:, 14, 0] = 0.9
    refined[:, 5, 1] = 0.8
    refined[1, 6, 0] = 0.85  # the second image's class 0 is inside too
    made = replace(found, refined=refined)
    before = refined.amax(dim=1)
    stopped = tag_scores(asked, made, 3, True)
    assert torch.equal(stopped[0], before[0])
    assert (stopped[1] != before[1]).tolist() == [True, True, False]
    skipped = tag_scores(look(asked.tower, asked.pixels, words(3), empty_box="skip"), made, 3, True)
    assert (skipped[0] != before[0]).tolist() == [False, True, False]
    assert torch.equal(skipped[1], stopped[1])


@torch.no_grad()
def test_batches_one_class_and_many_crops(small: ClipModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, batch = Tower(small.visual), pixels(3, (40, 56))
    together = tags(look(tower, batch, words()))
    assert together.shape == (3, 5)
    for one, got in zip(batch, together, strict=True):
        torch.testing.assert_close(tags(look(tower, one[None], words()))[0], got, rtol=1e-4, atol=1e-5)
    alone = tags(look(tower, batch, words(1)))
    assert torch.equal(alone, tags(look(tower, batch, words(1)), again=False)), "no range, no second look"
    monkeypatch.setattr(tagclip, "_CHUNK", 1)
    torch.testing.assert_close(tags(look(tower, batch, words())), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 6])
def test_counts_out_of_range(small: ClipModel, count: int) -> None:
    with pytest.raises(TwostageError, match=f"from 1 to the 5 text rows, got {count}"):
        tags(look(Tower(small.visual), pixels(1, (32, 32)), words()), count)


def test_settings_and_knobs_out_of_range(small: ClipModel) -> None:
    with pytest.raises(TwostageError, match=r"share should be from 0 to 1, got 1\.5"):
        tags(look(Tower(small.visual), pixels(1, (32, 32)), words(), share=1.5))
    with pytest.raises(TwostageError, match=r"unknown empty_box 'stopp'.*stop"):
        presets.find("tagclip").with_settings({"empty_box": "stopp"})
    asked = look(Tower(small.visual), pixels(1, (32, 32)), words())
    with pytest.raises(TwostageError, match="attention has to stay 'identity', got 'qk'"):
        spread(replace(asked, knobs=replace(asked.knobs, attention="qk")))
