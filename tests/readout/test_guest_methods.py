"""ProxyCLIP and CASS: against records, and against their formulas written out for one image."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import dense_records as rec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.ops import spectral
from twostage.readout import presets, vit
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Guest, Look, logits
from twostage.readout.methods import guests
from twostage.readout.presence import image_vector, moved_texts, text_groups
from twostage.readout.record import Wanted, run_early


def pixels(count: int, height: int = 48, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def words(count: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, 32, generator=torch.Generator().manual_seed(9)), dim=1)


def guest_of(*shape: int) -> Guest:
    """Features that depend on the image: fixed random mixtures of its colours on a grid.

    shape: (C, h, w) or (m, C, h, w).
    """
    *many, high, wide = shape
    draw = torch.randn(math.prod(many), 3, generator=torch.Generator().manual_seed(12))

    def look(rgb: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(rgb, (high, wide))
        small = (small - small.mean(dim=(2, 3), keepdim=True)) * 20
        mixed = torch.einsum("oc,bchw->bohw", draw, small + small.roll(1, 3) ** 2)
        return torch.sin(mixed).unflatten(1, tuple(many))

    return look


def look(
    small: ClipModel, name: str, batch: Tensor, guest: Guest, texts: Tensor | None = None, **knobs: Any
) -> Look:
    tower, preset = Tower(small.visual), presets.find(name)
    changed = replace(fitted(preset.knobs, 4), **knobs)
    texts = words() if texts is None else texts
    return Look(tower, changed, batch, texts, 40.0, preset.settings, guest=guest)


def entering(small: ClipModel, image: Tensor) -> Tensor:
    """(L, D) tokens that enter the last block of one image."""
    visual: Any = small.visual
    tokens, _ = vit.embed(visual, image[None], "bicubic_scale")
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens[0]


def head_parts(small: ClipModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(m, N, d) keys and values of the last block's patches."""
    last = small.visual.transformer.resblocks[-1]  # type: ignore[union-attr,index]
    packed = last.ln_1(tokens[1:]) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias
    return tuple(packed[:, at : at + 64].unflatten(1, (4, 16)).transpose(0, 1) for at in (64, 128))  # type: ignore[return-value]


def read_out(small: ClipModel, mixed: Tensor) -> Tensor:
    """(m, N, d) -> (N, E) unit rows."""
    visual: Any = small.visual
    out = visual.transformer.resblocks[-1].attn.out_proj(mixed.transpose(0, 1).flatten(1))
    return F.normalize(visual.ln_post(out) @ visual.proj, dim=1)


@pytest.mark.golden
@pytest.mark.parametrize("side", [14, 21, 28])
def test_proxyclip_is_as_recorded(side: int) -> None:
    record = rec.case(f"proxyclip_guest{side}x{side}")
    given = torch.from_numpy(rec.records().inputs.guest(side, side))
    preset = presets.find("proxyclip")
    asked = Look(
        rec.recorded_tower(),
        preset.knobs,
        rec.image(),
        rec.text(),
        settings=preset.settings,
        guest=lambda rgb: given,
    )
    found = logits(preset.method, asked)[0]
    assert found.shape == (10, side, side)
    rec.compare(record, "logits", found.flatten(1).T)
    rec.compare_map(record, "argmax", found.argmax(dim=0).flatten(), 0.005)
    closed = guests.closed_below(guests.likeness(given[:, None]), 1.2, 3.0)[:, None]
    with torch.no_grad():
        rows = guests._on_guest_grid(asked, (side, side), {"guest": closed})
    rec.compare(record, "features", rows)
    if side == 14:
        on_tower = replace(asked, settings={**preset.settings, "grid": "tower"})
        rec.compare(record, "logits", logits(preset.method, on_tower)[0].flatten(1).T)


def slow_proxyclip(small: ClipModel, image: Tensor, guest: Tensor, texts: Tensor) -> Tensor:
    """(T, h', w') of one image; guest: (C, h', w')."""
    high, wide = guest.shape[1:]
    count = high * wide
    with torch.no_grad():
        _, values = head_parts(small, entering(small, image))
        maps = values.transpose(1, 2).reshape(4, 16, 6, 8)
        maps = F.interpolate(maps, (high, wide), mode="bilinear", align_corners=False)
        alike = torch.empty(count, count)
        for a in range(count):
            for b in range(count):
                one, other = (guest[:, at // wide, at % wide] for at in (a, b))
                alike[a, b] = F.cosine_similarity(one, other, dim=0)
        mean, mixed = alike.mean(), torch.zeros(4, count, 16)
        for a in range(count):
            open_to = [b for b in range(count) if alike[a, b] - 1.2 * mean >= 0]
            assert 1 < len(open_to) < count
            share = torch.stack([3 * (alike[a, b] - 1.2 * mean) for b in open_to]).softmax(0)
            for weight, b in zip(share, open_to, strict=True):
                mixed[:, a] += weight * maps[:, :, b // wide, b % wide]
        return (40 * read_out(small, mixed) @ texts.T).T.reshape(-1, high, wide)


def test_proxyclip_by_hand(small: ClipModel) -> None:
    batch, guest = pixels(2), guest_of(6, 5, 7)
    asked = look(small, "proxyclip", batch, guest)
    found = logits(guests.proxyclip, asked)
    for image, rgb, got in zip(batch, asked.rgb, found, strict=True):
        expected = slow_proxyclip(small, image, guest(rgb[None])[0], words())
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


def test_proxyclip_adds_other_terms_on_the_guests_grid(small: ClipModel) -> None:
    """Any term of the last block, resized as the values are; on the tower's own grid the same both ways."""
    asked = look(small, "proxyclip", pixels(2), guest_of(6, 6, 8), attention="0.5 * [guest + gauss(2)] + kk")
    found = logits(guests.proxyclip, asked)
    plain = logits(guests.proxyclip, replace(asked, knobs=replace(asked.knobs, attention="guest")))
    tower = logits(guests.proxyclip, replace(asked, settings={**asked.settings, "grid": "tower"}))
    assert not torch.allclose(found, plain, atol=1e-2)
    torch.testing.assert_close(found, tower, rtol=1e-4, atol=1e-3)


def test_proxyclip_on_the_towers_grid_follows_every_knob(small: ClipModel) -> None:
    asked = look(small, "proxyclip", pixels(2), guest_of(6, 5, 7), residual=True, class_token=0.3)
    found = logits(guests.proxyclip, replace(asked, settings={**asked.settings, "grid": "tower"}))
    assert found.shape == (2, 5, 6, 8)
    with pytest.raises(TwostageError, match=r"proxyclip: residual is False .* setting grid to 'tower'"):
        logits(guests.proxyclip, asked)
    bound = look(small, "proxyclip", pixels(1), guest_of(6, 5, 7), attention="0.5 * guest + captured(1)")
    with pytest.raises(TwostageError, match="captured is a map of the tower's own patches"):
        logits(guests.proxyclip, bound)


def test_a_guest_that_sees_no_difference_leaves_patches_to_themselves(small: ClipModel) -> None:
    found = logits(guests.proxyclip, look(small, "proxyclip", pixels(1), lambda rgb: torch.ones(1, 2, 6, 8)))
    identity = look(small, "proxyclip", pixels(1), lambda rgb: torch.ones(1, 2, 6, 8), attention="identity")
    torch.testing.assert_close(found, logits(guests.proxyclip, identity), rtol=1e-4, atol=1e-3)


def slow_graph(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors of the cosine graph of (N, C) rows over N."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(unit @ unit.T / len(unit))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def slow_low_rank(values: np.ndarray, vectors: np.ndarray, energy: float) -> np.ndarray:
    found, total = np.zeros((len(vectors), len(vectors))), 0.0
    for value, vector in zip(values, vectors.T, strict=True):
        found += value * (value / values[0]) * np.outer(vector, vector)
        total += value
        if total >= energy * values.sum():
            break
    found = np.maximum(found, 0)
    return found / found.sum(axis=1, keepdims=True)


def slow_cass(small: ClipModel, image: Tensor, guest: Tensor, texts: Tensor, settings: Any) -> Tensor:
    """(T, 6, 8) of one image; guest: (n, C, h', w')."""
    with torch.no_grad():
        tokens = entering(small, image)
        keys, values = head_parts(small, tokens)
        maps = F.interpolate(guest, (6, 8), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
        theirs = [slow_graph(one.double().numpy()) for one in maps]
        own = [slow_graph(one.double().numpy())[0] for one in keys]
        count = min(20, 48)
        cost = np.array([[wasserstein_distance(a[:count], b[0][:count]) for b in theirs] for a in own])
        tiled = np.tile(cost, math.ceil(4 / len(theirs)))
        order = np.array([[(a - b) ** 2 for b in range(tiled.shape[1])] for a in range(4)])
        partner = linear_sum_assignment(tiled + 1e-6 * order)[1] % len(theirs)
        place = [(at // 8, at % 8) for at in range(48)]
        near = torch.tensor([[-(math.dist(a, b) ** 2) / 50 for b in place] for a in place]).exp()
        mixed = torch.zeros(4, 48, 16)
        for head in range(4):
            clip_map = (keys[head] @ keys[head].T / 4 + near).softmax(dim=1)
            weight = 10 * cost[head, partner[head]]
            dino = torch.from_numpy(slow_low_rank(*theirs[partner[head]], 0.95)).float()
            mixed[head] = (weight * dino + clip_map) / (weight + 1) @ values[head]
        unit = read_out(small, mixed)
        visual: Any = small.visual
        last = visual.transformer.resblocks[-1](tokens[None])
        present = F.normalize(visual.ln_post(last[0, 0]) @ visual.proj, dim=0) @ texts.T
        groups = text_groups(texts, settings["text_height"])
        moved = texts.clone()
        for group in groups.unique():
            members = [at for at in range(len(texts)) if groups[at] == group]
            top = max(members, key=lambda at: float(present[at]))
            best = (unit @ texts[top]).topk(2).indices
            share = settings["text_move"]
            moved[top] = F.normalize((1 - share) * texts[top] + share * unit[best].mean(0), dim=0)
        scores = (1 - settings["class_mix"]) * unit @ moved.T + settings["class_mix"] * present
        return 40 * scores.T.reshape(-1, 6, 8)


@pytest.mark.parametrize("shape", [(6, 5, 7), (3, 9, 7, 9), (4, 40, 6, 8), (7, 5, 6, 8)], ids=str)
def test_cass_by_hand(small: ClipModel, shape: tuple[int, ...]) -> None:
    """Without heads, with fewer heads than CLIP, as many, and more."""
    batch, guest, texts = pixels(2), guest_of(*shape), words(7)
    asked = look(small, "cass", batch, guest, texts)
    changed = {"text_height": 1.3, "text_move": 0.2, "class_mix": 0.4}
    asked = replace(asked, settings={**asked.settings, **changed})
    found = logits(guests.cass, asked)
    for image, rgb, got in zip(batch, asked.rgb, found, strict=True):
        maps = guest(rgb[None])
        maps = maps[0] if maps.ndim == 5 else maps
        expected = slow_cass(small, image, maps, texts, asked.settings)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=5e-3)


def test_cass_without_prior_and_guest_is_naclip_on_patches(small: ClipModel) -> None:
    asked = look(small, "cass", pixels(2), guest_of(6, 5, 7))
    off = {"strength": 0.0, "class_mix": 0.0, "text_move": 0.0}
    found = logits(guests.cass, replace(asked, settings={**asked.settings, **off}))
    reading = asked.read()
    expected = 40 * asked.cosines(reading).transpose(1, 2).unflatten(2, reading.grid)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    one_word = logits(guests.cass, look(small, "cass", pixels(1), guest_of(6, 5, 7), words(1)))
    assert one_word.isfinite().all()


@pytest.mark.parametrize("heads", ["each", "mean"])
@pytest.mark.parametrize(
    "attention", ["identity", "0.3 * kk + captured(1)", "qq + 0.5 * [gauss(2)]", "[guest]"]
)
def test_cass_with_another_attention(small: ClipModel, attention: str, heads: str) -> None:
    """Without the guest's share, the map as a whole mixes values as its terms do one by one."""
    asked = look(small, "cass", pixels(2), guest_of(6, 5, 7), attention=attention, heads=heads)
    off = {"strength": 0.0, "class_mix": 0.0, "text_move": 0.0}
    asked = replace(asked, settings={**asked.settings, **off})
    if "guest" in attention:
        with pytest.raises(TwostageError, match="'guest' has to be given"):
            logits(guests.cass, asked)
        return
    reading = asked.read()
    expected = 40 * asked.cosines(reading).transpose(1, 2).unflatten(2, reading.grid)
    torch.testing.assert_close(logits(guests.cass, asked), expected, rtol=1e-4, atol=1e-3)


def test_cass_knows_patches_only(small: ClipModel) -> None:
    with pytest.raises(TwostageError, match="Preset cass: keys is 'patches' in this method, got 'all'"):
        logits(guests.cass, look(small, "cass", pixels(1), guest_of(6, 5, 7), keys="all"))


@pytest.mark.parametrize("shape", [(2, 9, 4), (3, 4, 9), (5, 5)], ids=str)
def test_spectrum_is_numpys(shape: tuple[int, ...]) -> None:
    rows = F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(1)), dim=-1)
    values, vectors = spectral.spectrum(rows)
    torch.testing.assert_close(values.sum(-1), torch.ones(shape[:-2]))
    graph = (vectors * values[..., None, :]) @ vectors.transpose(-2, -1)
    torch.testing.assert_close(graph, rows @ rows.transpose(-2, -1) / shape[-2], rtol=1e-4, atol=1e-6)
    for got, one in zip(values.reshape(-1, values.shape[-1]), rows.reshape(-1, *shape[-2:]), strict=True):
        expected = slow_graph(one.double().numpy())[0][: values.shape[-1]]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)


def test_distances_are_scipys_with_zeros_for_missing_eigenvalues() -> None:
    first = torch.rand(2, 3, 6).sort(dim=-1, descending=True).values
    second = torch.rand(2, 2, 4).sort(dim=-1, descending=True).values
    got = spectral.spectral_distance(first, second, 5)
    for image in range(2):
        for a in range(3):
            for b in range(2):
                padded = [*second[image, b].tolist(), 0.0]
                expected = wasserstein_distance(first[image, a, :5].tolist(), padded)
                assert float(got[image, a, b]) == pytest.approx(expected, rel=1e-5)


def test_partners() -> None:
    cost = torch.tensor([[0.0, 5.0, 1.0], [0.0, 9.0, 9.0]])
    assert spectral.matched(cost).tolist() == [2, 0], "not the nearest of each, the cheapest of all"
    assert spectral.matched(cost.T).tolist() in ([0, 1, 0], [1, 0, 0]), "two for three: one serves twice"
    assert spectral.matched(torch.ones(4, 1)).tolist() == [0, 0, 0, 0]
    noise = 1e-8 * torch.randn(20, 3, 5, generator=torch.Generator().manual_seed(1))
    tied = torch.tensor([1.0, 2.0, 3.0])[:, None] + torch.tensor([0.1, 0.2, 0.1, 0.3, 0.1])
    assert all(spectral.matched(tied + one).tolist() == [0, 2, 4] for one in noise), (
        "rounding decides nothing"
    )


def test_low_rank_maps_have_rows_of_sum_one() -> None:
    rows = F.normalize(torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    rows[2] = 0
    found = spectral.low_rank_map(*spectral.spectrum(rows), 0.9)
    torch.testing.assert_close(found.sum(-1), torch.ones(7))
    assert found[2].tolist() == [0, 0, 1, 0, 0, 0, 0], "a patch without a feature looks at itself"


def test_the_images_own_vector(small: ClipModel) -> None:
    batch, tower = pixels(2, 32, 32), Tower(small.visual)
    with torch.no_grad():
        tokens, _ = vit.embed(tower.visual, batch)
        record = run_early(tower.blocks, tokens, Wanted())
        torch.testing.assert_close(
            image_vector(tower, record), F.normalize(small.visual(batch), dim=1), rtol=1e-4, atol=1e-5
        )


def test_texts_in_groups() -> None:
    texts = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [0.02, 1.0]]), dim=1)
    groups = text_groups(texts, 0.1)
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    assert sorted(groups.unique().tolist()) == [0, 1]
    assert text_groups(texts, 0.0).unique().numel() == 4
    assert text_groups(texts[:1], 0.1).tolist() == [0]
    patches = F.normalize(torch.tensor([[[0.0, -1.0]]]), dim=2)
    moved = moved_texts(texts, torch.tensor([[0.1, 0.2, 0.3, 0.1]]), patches, groups, 0.5)[0]
    assert torch.equal(moved[[0, 3]], texts[[0, 3]]), "not the first of their group in this image"
    torch.testing.assert_close(moved[2], F.normalize(texts[2] + patches[0, 0], dim=0))
