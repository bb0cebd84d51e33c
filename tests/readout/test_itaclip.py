"""ITACLIP against recorded numbers, its attention written out, and its five views."""

from __future__ import annotations

import math
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
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look, logits
from twostage.readout.methods.itaclip import blurred, grey, itaclip


def pixels(count: int, size: tuple[int, int], seed: int = 3) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def words(count: int = 4) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def look_at(clip: ClipModel, batch: Tensor, **settings: Any) -> Look:
    preset = presets.find("itaclip").with_settings(settings)
    tower = Tower(clip.visual)
    return Look(tower, fitted(preset.knobs, len(tower.blocks)), batch, words(), 40.0, preset.settings)


@pytest.mark.golden
def test_recorded() -> None:
    record, preset = rec.case("itaclip"), presets.find("itaclip")
    look = Look(rec.recorded_tower(), preset.knobs, rec.image(), rec.text(), settings=preset.settings)
    with torch.no_grad():
        got = look.read()
    rec.compare(record, "features", got.features)
    rec.compare(record, "logits", look.cosines(got))
    rec.compare_map(record, "argmax", look.cosines(got)[0].argmax(dim=1), 0.005)


@pytest.mark.golden
def test_recorded_ensemble() -> None:
    preset = presets.find("itaclip").with_settings({"views": "ensemble"})
    look = Look(rec.recorded_tower(), preset.knobs, rec.image(), rec.text(), settings=preset.settings)
    full = F.interpolate(logits(itaclip, look), size=(224, 224), mode="bilinear", align_corners=False)
    rec.compare(rec.case("itaclip_ensemble"), "full_logits", full)


def written_out(clip: ClipModel, image: Tensor) -> Tensor:
    """(N, E) unit features of one image; of the four blocks 2 stands for 6, 7 and 9 of twelve."""
    visual: Any = clip.visual
    tokens, _ = vit.embed(visual, image[None], "bicubic_scale")

    def maps(block: Any) -> tuple[list[Tensor], list[Tensor]]:
        packed = block.ln_1(tokens[0]) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = (packed[:, 64 * s : 64 * (s + 1)].split(16, dim=1) for s in range(3))
        own = [
            (a @ a.T / math.sqrt(16)).softmax(dim=1) + (b @ b.T / math.sqrt(16)).softmax(dim=1)
            for a, b in zip(q, k, strict=True)
        ]
        return own, list(v)

    middle: list[Tensor] = []
    for number, block in enumerate(visual.transformer.resblocks[:-1]):
        if number == 2:
            middle = maps(block)[0]
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    own, values = maps(last)
    mixed = torch.cat([(0.5 * own[m] + 0.5 * middle[m]) @ values[m] for m in range(4)], dim=1)
    out = tokens[0] + mixed @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
    return F.normalize(visual.ln_post(out[1:]) @ visual.proj, dim=1)


@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_written_out(small: ClipModel, size: tuple[int, int]) -> None:
    batch = pixels(2, size)
    look = look_at(small, batch)
    with torch.no_grad():
        got = look.read().unit
        for one in range(2):
            torch.testing.assert_close(got[one], written_out(small, batch[one]), rtol=1e-4, atol=1e-4)


def test_five_views_written_out(small: ClipModel) -> None:
    batch = pixels(1, (24, 40))
    image = batch[0]
    got = logits(itaclip, look_at(small, batch, views="ensemble", image_weight=0.6))
    luminance = 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    with torch.no_grad():
        three = [
            written_out(small, one)
            for one in (image, torch.stack([luminance] * 3), torch.stack([slow_blur(c) for c in image]))
        ]
        upright = (sum(three[1:], three[0]) / 3 @ words().T).T.reshape(4, 3, 5)
        turned = [
            (written_out(small, image.flip(axis)) @ words().T).T.reshape(4, 3, 5).flip(axis)
            for axis in (1, 2)
        ]
    expected = 0.6 * upright + 0.4 * (turned[0] + turned[1]) / 2
    torch.testing.assert_close(got[0] / 40, expected, rtol=1e-4, atol=1e-4)


def slow_blur(channel: Tensor) -> Tensor:
    """(H, W) under eleven taps of standard deviation 5 both ways, pixel by pixel, mirrored at the border."""
    height, width = channel.shape
    mirror = lambda at, size: abs(at) if at < size else 2 * (size - 1) - at
    taps = [math.exp(-(t**2) / 50) for t in range(-5, 6)]
    out = torch.zeros_like(channel)
    for y in range(height):
        for x in range(width):
            for t in range(-5, 6):
                for s in range(-5, 6):
                    weight = taps[t + 5] * taps[s + 5] / sum(taps) ** 2
                    out[y, x] += weight * channel[mirror(y + t, height), mirror(x + s, width)]
    return out


def test_blur_against_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    batch = pixels(2, (16, 23))
    torch.testing.assert_close(blurred(batch), functional.gaussian_blur(batch, [11, 11], [5.0, 5.0]))
    torch.testing.assert_close(grey(batch), functional.rgb_to_grayscale(batch, 3))


def test_blur_of_few_pixels() -> None:
    even = torch.full((1, 3, 1, 4), 0.7)
    torch.testing.assert_close(blurred(even), even)
    half = pixels(1, (8, 8)).bfloat16()
    assert blurred(half).dtype == torch.bfloat16


def test_the_ensemble_of_a_batch_is_its_members(small: ClipModel) -> None:
    batch = pixels(2, (8, 40))
    together = logits(itaclip, look_at(small, batch, views="ensemble"))
    assert together.shape == (2, 4, 1, 5)
    for one in range(2):
        alone = logits(itaclip, look_at(small, batch[one : one + 1], views="ensemble"))
        torch.testing.assert_close(together[one], alone[0], rtol=1e-4, atol=1e-4)


def test_bad_settings(small: ClipModel) -> None:
    with pytest.raises(TwostageError, match="Did you mean 'ensemble'"):
        presets.find("itaclip").with_settings({"views": "ensembles"})
    look = look_at(small, pixels(1, (8, 8)))
    for weight in (-0.1, 1.1):
        wrong = replace(look, settings={**look.settings, "image_weight": weight})
        with pytest.raises(TwostageError, match=f"image_weight is a share .* got {weight}"):
            logits(itaclip, wrong)
