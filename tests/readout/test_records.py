"""Readings against the numbers recorded from the public implementations."""

from __future__ import annotations

from dataclasses import replace

import dense_records as rec
import pytest
import torch

from twostage.readout import presets, vit
from twostage.readout.engine import Reading, read
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look
from twostage.readout.refine import denoise_prompts, smooth_by_keys

OFF = Knobs(residual=False, ffn=False)

SINGLE: dict[str, Knobs] = {
    "vanilla": presets.find("vanilla").knobs,
    "sclip": presets.find("sclip").knobs,
    "sclip_reduced": replace(OFF, attention="qq + kk"),
    "clearclip": presets.find("clearclip").knobs,
    "clearclip_full": Knobs(attention="qq"),
    "identity_reduced": replace(OFF, attention="identity"),
    "identity_full": Knobs(attention="identity"),
    "qk_reduced": OFF,
    "kk_reduced": replace(OFF, attention="kk"),
    "naclip": presets.find("naclip").knobs,
    "naclip_full": Knobs(attention="[kk + gauss(5)]"),
    "resclip_rcs": replace(OFF, attention="0.8 * [kk + gauss(5)] + 1.2 * captured(5-8)"),
    "pearl": presets.find("pearl").knobs,
    "pearl_svd": replace(OFF, attention="[qk_procrustes(0) + 0.08 * kk_centred]"),
    "pearl_alpha03": replace(OFF, attention="[qk_procrustes(5) + 0.3 * kk_centred]"),
}


def reading(knobs: Knobs) -> Reading:
    with torch.no_grad():
        return read(rec.recorded_tower(), rec.image(), knobs)


@pytest.mark.golden
@pytest.mark.parametrize("method", SINGLE)
def test_one_pass(method: str) -> None:
    record = rec.case(method)
    got = reading(SINGLE[method])
    rec.compare(record, "features", got.features[0])
    scores = (got.unit @ rec.text().T)[0]
    rec.compare(record, "logits", scores)
    rec.compare_map(record, "argmax", scores.argmax(dim=1), 0.005)


@pytest.mark.golden
def test_row_of_the_class_token() -> None:
    first = reading(presets.find("vanilla").knobs).first
    assert first is not None
    for method in ("vanilla", "clip_encode_image", "open_clip_encode_image"):
        rec.compare(rec.case(method), "image", first)


@pytest.mark.golden
def test_maskclip_with_its_refinements() -> None:
    record, tower = rec.case("maskclip_official"), rec.recorded_tower(official=True)
    look = Look(tower, presets.find("maskclip").knobs, rec.image(), rec.text())
    with torch.no_grad():
        found = look.read()
        keys = vit.merge_heads(tower.blocks[-1], vit.project(tower.blocks[-1], found.record.entering, "k")[0])
    scores = look.cosines(found)
    rec.compare(record, "features", found.features)
    rec.compare(record, "logits", scores)
    dropped = denoise_prompts(scores, 0.5)
    rec.compare(record, "logits_pd", dropped)
    rec.compare(record, "logits_ks", smooth_by_keys(scores, keys[:, 1:], 1.0, "tokens"))
    rec.compare(record, "logits_pd_ks", smooth_by_keys(dropped, keys[:, 1:], 1.0, "tokens"))
