"""CLIPtrase: the records, the correlation and the votes written out, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.readout import presets, vit
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look, logits
from twostage.readout.methods.cliptrase import clusters, least_of, radius_of, read_correlation

METHOD = presets.find("cliptrase").method


def pixels(count: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def words(count: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def look(tower: Tower, batch: Tensor, text: Tensor, **settings: Any) -> Look:
    preset = presets.find("cliptrase").with_settings(settings)
    return Look(tower, fitted(preset.knobs, len(tower.blocks)), batch, text, 40.0, preset.settings)


def recorded(**settings: Any) -> Look:
    return replace(look(rec.recorded_tower(), rec.image(), rec.text(), **settings), scale=1.0)


@pytest.mark.golden
@torch.no_grad()
def test_as_recorded() -> None:
    record = rec.case("cliptrase")
    asked = recorded()
    reading, correlation = read_correlation(asked)
    scores = asked.cosines(reading)[0]
    rec.compare(record, "features", reading.features)
    rec.compare(record, "correlation", correlation)
    rec.compare(record, "logits", scores)
    rec.compare_map(record, "argmax", scores.argmax(dim=1), 0.005)
    for radius in (0.7, 0.3):
        labels = clusters(correlation[0], radius, 3)[1] + 1
        rec.compare_map(record, f"clusters_eps{radius}_min3", labels)
    assert radius_of(196) == pytest.approx(0.7)
    assert least_of(196) == 3


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("labels_eps0.7_min3", {}),
        ("labels_eps0.3_min3", {"radius": 0.3, "least": 3}),
        ("labels_eps0.3_min3_cls_weighted", {"radius": 0.3, "least": 3, "class_token_factor": True}),
    ],
)
def test_voted_labels_as_recorded(name: str, settings: dict[str, Any]) -> None:
    maps = logits(METHOD, recorded(**settings))[0]
    assert maps.shape == (10, 224, 224)
    rec.compare_map(rec.case("cliptrase"), name, maps.argmax(dim=0)[::4, ::4], 0.005)


def slow_correlation(model: ClipModel, one: Tensor) -> Tensor:
    """(3, H, W) -> (L, L), pair by pair, from the input of the third of four blocks."""
    visual: Any = model.visual
    tokens, _ = vit.embed(visual, one[None], "bicubic_scale")
    for block in visual.transformer.resblocks[:2]:
        tokens = block(tokens)
    block = visual.transformer.resblocks[2]
    packed = block.ln_1(tokens[0]) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    found = torch.zeros(len(packed), len(packed))
    for part in range(3):
        for head in range(4):
            rows = packed[:, part * 64 + head * 16 : part * 64 + head * 16 + 16]
            for i, row in enumerate(rows):
                found[i] += F.cosine_similarity(row[None], rows, dim=1) / 12
    return found


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (40, 24)])
@torch.no_grad()
def test_correlation_by_hand(small: ClipModel, size: tuple[int, int]) -> None:
    batch = pixels(2, size)
    _, got = read_correlation(look(Tower(small.visual), batch, words()))
    for one, found in zip(batch, got, strict=True):
        torch.testing.assert_close(found, slow_correlation(small, one), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_affinity_and_its_clusters_by_hand(small: ClipModel) -> None:
    _, correlation = read_correlation(look(Tower(small.visual), pixels(1, (40, 48)), words()))
    affinity, labels = clusters(correlation[0], 0.5, 2)
    for i in range(30):
        for j in range(30):
            expected = max(float(correlation[0, i + 1, j + 1] - correlation[0, 0, j + 1]), 0.0)
            assert float(affinity[i, j]) == pytest.approx(expected, abs=1e-6)
    assert labels.shape == (30,)


@pytest.mark.parametrize("size", [(40, 48), (8, 8), (8, 40)])
def test_every_region_has_one_class(small: ClipModel, size: tuple[int, int]) -> None:
    """One cluster of everything: the class that most pixels have is everywhere; values stay."""
    tower, batch = Tower(small.visual), pixels(1, size)
    alone = logits(METHOD, look(tower, batch, words(), radius=1e-9, least=2))[0]
    with torch.no_grad():
        plain = look(tower, batch, words()).read()
        scores = 40 * (plain.unit @ words().T).transpose(1, 2).unflatten(2, plain.grid)
    expected = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(alone, expected, rtol=1e-5, atol=1e-5)
    together = logits(METHOD, look(tower, batch, words(), radius=1e9, least=1))[0]
    winner = int(alone.argmax(dim=0).flatten().bincount().argmax())
    assert (together.argmax(dim=0) == winner).all()
    torch.testing.assert_close(together.amax(dim=0), expected.amax(dim=0), rtol=1e-5, atol=1e-5)


def test_one_class_and_the_factor_of_the_class_token(small: ClipModel) -> None:
    tower, batch = Tower(small.visual), pixels(1, (40, 24))
    one = logits(METHOD, look(tower, batch, words()[:1]))
    assert one.shape == (1, 1, 40, 24)
    assert one.isfinite().all()
    with torch.no_grad():
        first = look(tower, batch, words()).read().first
    assert first is not None
    plain, weighted = (
        logits(METHOD, look(tower, batch, words(), radius=1e-9, least=2, class_token_factor=on))
        for on in (False, True)
    )
    factor = (F.normalize(first, dim=1) @ words().T)[0, :, None, None]
    torch.testing.assert_close(weighted[0], plain[0] * factor, rtol=1e-4, atol=1e-4)


def test_published_numbers_and_others_between() -> None:
    assert radius_of(21 * 21) == pytest.approx(1.1)
    assert (least_of(21 * 21), least_of(1), least_of(28 * 28)) == (7, 1, 13)
    assert 0.7 < radius_of(17 * 18) < 1.1
    assert 0 < radius_of(1) < 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": -0.1}, "got -0.1 and 0"),
        ({"least": -1}, "got 0.0 and -1"),
        ({"least": 2.5}, "got 0.0 and 2.5"),
    ],
)
def test_settings_out_of_range(small: ClipModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TwostageError, match=message):
        logits(METHOD, look(Tower(small.visual), pixels(1, (32, 32)), words(), **settings))


def test_the_factor_needs_the_class_token(small: ClipModel) -> None:
    asked = look(Tower(small.visual), pixels(1, (32, 32)), words(), class_token_factor=True)
    with pytest.raises(TwostageError, match="needs the class token, got keys 'patches'"):
        logits(METHOD, replace(asked, knobs=replace(asked.knobs, keys="patches")))


def test_shallow_towers_are_refused() -> None:
    tower = Tower(VisionTransformer(32, 8, 64, 2, 4, 4.0, output_dim=32).eval())
    with pytest.raises(TwostageError, match="at least 3, got a tower of 2 blocks"):
        logits(METHOD, look(tower, pixels(1, (32, 32)), words()))
