"""ResCLIP against recorded numbers, and against its two looks written out for one image."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.ops.pamr import pamr
from twostage.readout import presets, vit
from twostage.readout.attention import parse
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look, logits
from twostage.readout.methods.resclip import blended, first_labels, first_reading, second_reading

RECORDED = {"lambda_r": 0.6, "tau_r": 2.0, "lambda_s": 0.6, "tau_s": 2.1}
ON_SCLIP = {"attention": "qq + kk + captured(5-8)", "residual": True, "ffn": True}
CASES: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "resclip": ({}, {}),
    "resclip_rcs": ({"lambda_s": 0}, {}),
    "resclip_sfr": ({"lambda_r": 0, "tau_r": 1}, {}),
    "resclip_sclip_base": ({}, ON_SCLIP),
}


def pixels(count: int, size: tuple[int, int], seed: int = 3) -> Tensor:
    """Even blocks with a little noise, so that patches share labels."""
    draw = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn(count, 3, 4, 4, generator=draw), size=size, mode="nearest")
    return coarse + 0.1 * torch.randn(count, 3, *size, generator=draw)


def apt(look: Look, count: int = 4) -> Look:
    """The same with words that each fit other patches of the first image: their features less the mean."""
    with torch.no_grad():
        unit = first_reading(look).unit[0]
    chosen = torch.linspace(0, len(unit) - 1, count).long()
    return replace(look, text=F.normalize((unit - unit.mean(dim=0))[chosen], dim=1))


def look_at(
    clip: ClipModel, batch: Tensor, class_of: Tensor | None = None, **settings: float
) -> tuple[Look, Any]:
    preset = presets.find("resclip").with_settings(settings)
    tower = Tower(clip.visual)
    knobs = fitted(preset.knobs, len(tower.blocks))
    text = torch.eye(4, 32)
    return Look(tower, knobs, batch, text, 40.0, preset.settings, class_of=class_of), preset.method


@pytest.mark.golden
@pytest.mark.parametrize("method", CASES)
def test_recorded(method: str) -> None:
    settings, knobs = CASES[method]
    record = rec.case(method)
    preset = presets.find("resclip").with_settings({**RECORDED, **settings})
    look = Look(
        rec.recorded_tower(),
        replace(preset.knobs, **knobs),
        rec.image(),
        rec.text(),
        settings=preset.settings,
    )
    with torch.no_grad():
        first = first_reading(look)
        if "labels" in record["maps"]:
            rec.compare_map(record, "labels", first_labels(look, first)[0])
        got = second_reading(look, first)
    rec.compare(record, "features", got.features)
    rec.compare(record, "logits", look.cosines(got))
    rec.compare_map(record, "argmax", look.cosines(got)[0].argmax(dim=1), 0.005)


def heads_of(block: Any, tokens: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Queries, keys and values of one image, (L, d) a head."""
    width = tokens.shape[1]
    packed = block.ln_1(tokens) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    per = width // block.attn.num_heads
    split = [
        [packed[:, s * width + m * per : s * width + (m + 1) * per] for m in range(width // per)]
        for s in range(3)
    ]
    return split[0], split[1], split[2]


def belonging(labels: list[list[int]]) -> Tensor:
    """(N, N): the feedback map before its division by the maximum, pair by pair."""
    rows, columns = len(labels), len(labels[0])
    most = max(rows, columns) - 1
    places = [(y, x) for y in range(rows) for x in range(columns)]
    found = torch.zeros(len(places), len(places))
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            if labels[y][x] != labels[v][u]:
                continue
            steps = max(abs(v - y), abs(u - x))
            way = [(round(y + n / most * (v - y)), round(x + n / most * (u - x))) for n in range(steps + 1)]
            clear = all(labels[a][b] == labels[y][x] for a, b in way)
            found[i, j] = 1.0 if clear else math.exp(-steps / most)
    kernel = torch.tensor([math.exp(-(t**2) / 50) for t in range(-15, 16)])
    padded, smooth = F.pad(found, (15, 15)), torch.zeros_like(found)
    for t in range(31):
        smooth += kernel[t] / kernel.sum() * padded[:, t : t + len(places)]
    return smooth / smooth.sum(dim=1, keepdim=True)


def written_out(clip: ClipModel, image: Tensor, text: Tensor, settings: dict[str, float]) -> Tensor:
    """(T, h, w) cosines of one image after two looks; the tower has four blocks, 1 and 2 are captured."""
    visual: Any = clip.visual
    tokens, (rows, columns) = vit.embed(visual, image[None], "bicubic_scale")
    captured = [torch.zeros(1)] * 4
    for number, block in enumerate(visual.transformer.resblocks[:-1]):
        q, k, _ = heads_of(block, tokens[0])
        if number in (1, 2):
            captured = [captured[m] + 0.5 * (q[m] @ k[m].T / math.sqrt(16)).softmax(dim=1) for m in range(4)]
        tokens = block(tokens)
    last = visual.transformer.resblocks[-1]
    _, k, v = heads_of(last, tokens[0])
    bias = torch.zeros(rows * columns + 1, rows * columns + 1)
    for i in range(rows * columns):
        for j in range(rows * columns):
            apart = (i // columns - j // columns) ** 2 + (i % columns - j % columns) ** 2
            bias[1 + i, 1 + j] = math.exp(-apart / (2 * 5.0**2))

    def cosines(feedback: Tensor | None) -> Tensor:
        mixed = []
        for m in range(4):
            own = k[m] @ k[m].T / math.sqrt(16)
            if feedback is not None:
                own = settings["tau_s"] * ((1 - settings["lambda_s"]) * own + settings["lambda_s"] * feedback)
            own = (own + bias).softmax(dim=1)
            share = settings["lambda_r"]
            mixed.append(settings["tau_r"] * ((1 - share) * own + share * captured[m]) @ v[m])
        out = torch.cat(mixed, dim=1) @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        features = F.normalize(visual.ln_post(out[1:]) @ visual.proj, dim=1)
        return (features @ text.T).T.reshape(-1, rows, columns)

    full = F.interpolate(cosines(None)[None], image.shape[1:], mode="bilinear", align_corners=False)
    shares = (40 * pamr(image[None], full, 10, (8, 16))[0]).softmax(dim=0)
    labels = [[0] * columns for _ in range(rows)]
    for y in range(rows):
        for x in range(columns):
            cell = shares[:, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].flatten(1)
            best, where = cell.max(dim=0)
            where[best < settings["temp_thd"]] = 0
            counts = Counter(where.tolist())
            labels[y][x] = min(one for one in counts if counts[one] == max(counts.values()))
    share = belonging(labels)
    return cosines(F.pad((share / share.max()).half().float(), (1, 0, 1, 0)))


@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
@pytest.mark.parametrize("certain", [0.1, 0.9])
def test_two_looks_written_out(small: ClipModel, size: tuple[int, int], certain: float) -> None:
    batch = pixels(2, size)
    look, method = look_at(small, batch, temp_thd=certain)
    look = apt(look)
    with torch.no_grad():
        assert len(first_labels(look, first_reading(look)).unique()) > 2
    got = logits(method, look) / 40
    settings: dict[str, float] = {"lambda_r": 0.4, "tau_r": 2, "lambda_s": 0.65, "tau_s": 2}
    for one in range(2):
        with torch.no_grad():
            expected = written_out(small, batch[one], look.text, {**settings, "temp_thd": certain})
        torch.testing.assert_close(got[one], expected, rtol=1e-4, atol=1e-4)


def test_synonyms_share_a_label(small: ClipModel) -> None:
    """Patches of two rows of one class belong together as those of one row do."""
    batch = pixels(1, (64, 64))
    apart = apt(look_at(small, batch)[0])
    joined = replace(apart, class_of=torch.tensor([1, 1, 0, 0]))
    with torch.no_grad():
        rows, classes = (first_labels(look, first_reading(look)) for look in (apart, joined))
    assert len(rows.unique()) > 2
    assert set(classes.unique().tolist()) <= {0, 1}
    with torch.no_grad():
        unsure = first_labels(
            replace(joined, settings={**joined.settings, "temp_thd": 1.1}), first_reading(joined)
        )
    assert not unsure.any(), "no probability reaches the threshold"


def test_one_patch_and_one_word(small: ClipModel) -> None:
    look, method = look_at(small, pixels(2, (8, 8)))
    assert logits(method, look).isfinite().all()
    one_word = replace(look, pixels=pixels(1, (40, 24)), text=look.text[:1])
    assert logits(method, one_word).shape == (1, 1, 5, 3)
    even = replace(look, pixels=torch.zeros(1, 3, 32, 32))
    assert logits(method, even).isfinite().all()


def test_keys_of_patches_alone(small: ClipModel) -> None:
    look, method = look_at(small, pixels(1, (32, 40)))
    look = replace(look, knobs=replace(look.knobs, keys="patches"))
    assert logits(method, look).shape == (1, 4, 4, 5)


def test_how_the_attention_is_weighed() -> None:
    settings = {"lambda_r": 0.25, "tau_r": 2.0, "lambda_s": 0.75, "tau_s": 2.0, "logit_scale": 40.0}
    assert blended("[kk + gauss(5)] + captured(5-8)", settings) == (
        "1.5 * [0.5 * kk + 1.0 * gauss(5) + 1.5 * feedback] + 0.5 * [1.0 * captured(5, 6, 7, 8)]"
    )
    assert blended("qq + identity", {**settings, "lambda_r": 0}) == (
        "2.0 * [0.5 * qq + 1.5 * feedback] + 2.0 * [1.0 * identity]"
    )
    assert blended("kk + captured(3)", {**settings, "lambda_r": 0, "lambda_s": 0}) == "2.0 * [1.0 * kk]"
    hardly = parse(blended("kk + captured(3)", {**settings, "lambda_r": 1e-6, "lambda_s": 0}))
    assert hardly[1].weight == 2e-6, "small weights are written without an exponent"


@pytest.mark.parametrize(
    ("settings", "attention", "expected"),
    [
        ({"lambda_r": 1.5}, "kk", "lambda_r is a share and should be in 0..1, got 1.5"),
        ({"lambda_s": -0.1}, "kk", "lambda_s is a share"),
        ({"tau_s": 0}, "kk", "tau_s should be above 0, got 0"),
        ({"logit_scale": -40}, "kk", "logit_scale should be above 0"),
        ({}, "identity + captured(1)", "no product in the attention"),
        ({"lambda_r": 0, "lambda_s": 0}, "captured(1)", "nothing is left of the attention"),
    ],
)
def test_bad_settings(small: ClipModel, settings: dict[str, float], attention: str, expected: str) -> None:
    look, method = look_at(small, pixels(1, (32, 32)), **settings)
    with pytest.raises(TwostageError, match=expected):
        logits(method, replace(look, knobs=replace(look.knobs, attention=attention)))
