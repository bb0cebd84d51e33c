"""SC-CLIP and SFP against the numbers recorded from the public code, and on grids with few neighbours."""

from __future__ import annotations

from dataclasses import replace

import dense_records as rec
import pytest
import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.ops.outliers import local_outlier_factor
from twostage.readout import presets
from twostage.readout.engine import Reading, Tower, fitted, read
from twostage.readout.knobs import ClassOverSelf, Knobs
from twostage.readout.tokens import outliers

SFP = presets.find("sfp").knobs
RECORDED: dict[str, Knobs] = {
    "scclip": presets.find("scclip").knobs,
    "sfp": SFP,
    "sfp_scale1.0": replace(SFP, repair=ClassOverSelf(factor=0.3)),
}


def reading(tower: Tower, batch: Tensor, knobs: Knobs) -> Reading:
    with torch.no_grad():
        return read(tower, batch, knobs)


@pytest.mark.golden
@pytest.mark.parametrize("method", RECORDED)
def test_features_and_labels(method: str) -> None:
    record, got = rec.case(method), reading(rec.recorded_tower(), rec.image(), RECORDED[method])
    features = got.features[0]
    rec.compare(record, "features", features)
    rec.compare(record, "centred", features - features.mean(dim=0))
    scores = (got.unit @ rec.text().T)[0]
    rec.compare(record, "logits", scores)
    rec.compare_map(record, "argmax", scores.argmax(dim=1), 0.005)


@pytest.mark.golden
@pytest.mark.parametrize("method", RECORDED)
def test_outliers(method: str) -> None:
    knobs = RECORDED[method]
    assert knobs.repair is not None
    record = reading(rec.recorded_tower(), rec.image(), knobs).record
    rec.compare_map(rec.case(method), "outliers", outliers(record, knobs.repair).int())
    if method == "scclip":
        rec.compare(rec.case(method), "lof_scores", local_outlier_factor(record.entering[:, 1:]))


@pytest.mark.golden
def test_the_records_tell_every_step_apart() -> None:
    """Leaving out a step is seen in the centred record."""
    without: dict[str, list[Knobs]] = {
        method: [
            replace(knobs, repair=None),
            replace(knobs, smooth_before=None),
            replace(knobs, smooth_after=None),
            replace(knobs, levels=None),
            replace(knobs, class_token=0.0),
        ]
        for method, knobs in RECORDED.items()
    }
    without["sfp"].append(replace(SFP, levels_attention=None))
    for method, variants in without.items():
        for knobs in variants:
            features = reading(rec.recorded_tower(), rec.image(), knobs).features[0]
            with pytest.raises(AssertionError, match="off by"):
                rec.compare(rec.case(method), "centred", features - features.mean(dim=0))


@pytest.mark.parametrize("method", ["scclip", "sfp"])
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (24, 8), (40, 48), (8, 256)])
def test_any_grid(small: ClipModel, method: str, size: tuple[int, int]) -> None:
    """From a single patch to one row of 32: neighbours are as many as there are."""
    batch = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(5))
    got = reading(Tower(small.visual), batch, fitted(presets.find(method).knobs, 4))
    assert got.features.shape == (2, size[0] * size[1] // 64, 32)
    assert got.features.isfinite().all()
    assert got.first is None, "keys are patches only"


@pytest.mark.parametrize("method", ["scclip", "sfp"])
def test_a_single_colour(small: ClipModel, method: str) -> None:
    """Patches that differ by position alone."""
    got = reading(Tower(small.visual), torch.zeros(1, 3, 40, 40), fitted(presets.find(method).knobs, 4))
    assert got.features.isfinite().all()
