"""The dense temperature found without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import write_system

from twostage.builder import Builder
from twostage.config import Config, load_config
from twostage.data import catalog
from twostage.data.sample import Sample
from twostage.data.shapes.dataset import ShapesDataset
from twostage.ops.entropy import mean_entropy
from twostage.ops.fusion import pool_logits
from twostage.runs.calibration import Calibration, calibrate, match


class Unlabelled:
    """Drawn scenes whose ground truth nobody has."""

    name, vocabulary = "calibration_unlabelled", ShapesDataset("val").vocabulary

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        return dataclasses.replace(ShapesDataset("val")[index], labels=None)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Any:
    catalog.register(Unlabelled.name, lambda root: Unlabelled())


def configuration(folder: Path, *more: str) -> Config:
    system = write_system(folder, "DENSE: {NAME: readout}\n")
    options = ["CLASSIFIER.NAME", "crops", "DATASETS.TEST", f"[{Unlabelled.name}]", *more]
    return load_config(system, options)


def test_a_known_factor_between_both() -> None:
    regions = 6 * torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    shuffled = regions[:, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    found = match(regions, 4 * shuffled, photos=5, dataset="some")
    assert found.temperature == pytest.approx(4, rel=2e-4)
    assert found.entropy_after == pytest.approx(found.entropy_regions, abs=1e-4)
    assert found.entropy_before < found.entropy_after
    assert (found.photos, found.regions, found.classes) == (5, 40, 9)
    assert "DENSE_TEMPERATURE 4" in found.report()
    assert Calibration(**found.as_dict()) == found


def test_no_masks_no_temperature() -> None:
    with pytest.raises(ValueError, match="at least one region"):
        match(torch.zeros(0, 4), torch.zeros(0, 4), 2, "some")


@pytest.mark.parametrize("classifier", ["crops", "pooled"])
def test_both_are_equally_doubtful_afterwards(tmp_path: Path, classifier: str) -> None:
    """On photos without labels; the evidence gathered once more by hand gives the same entropies."""
    config = configuration(tmp_path, "CLASSIFIER.NAME", classifier)
    found = calibrate(config, photos=2)
    builder = Builder(config)
    words = builder.words(Unlabelled.vocabulary)
    regions, pooled = [], []
    for index in range(2):
        [evidence] = builder.segmenter().gather([Unlabelled()[index].image], words)
        assert evidence.regions is not None
        assert evidence.dense is not None
        assert evidence.proposals is not None
        regions.append(evidence.regions.logits)
        pooled.append(pool_logits(evidence.dense.logits, evidence.proposals.masks)[0])
    assert found.regions == 6  # three strips a photo
    assert found.photos == 2
    assert found.dataset == Unlabelled.name
    assert found.entropy_regions == pytest.approx(mean_entropy(torch.cat(regions)))
    after = mean_entropy(torch.cat(pooled) / found.temperature)
    assert after == pytest.approx(found.entropy_regions, abs=1e-3)
    assert found.entropy_after == pytest.approx(after, abs=1e-6)


def test_more_photos_than_there_are(tmp_path: Path) -> None:
    assert calibrate(configuration(tmp_path), photos=99, dataset=Unlabelled.name).photos == 3


def test_training_photos_come_first(tmp_path: Path) -> None:
    config = configuration(tmp_path, "DATASETS.TRAIN", f"[{Unlabelled.name}]", "DATASETS.TEST", "[nowhere]")
    assert calibrate(config, photos=1).dataset == Unlabelled.name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("DENSE.NAME", "''"), "DENSE.NAME is empty"),
        (("CLASSIFIER.NAME", "''"), "CLASSIFIER.NAME is empty"),
        (("PROPOSALS.NAME", "''"), "PROPOSALS.NAME is empty"),
        (("DATASETS.TEST", "[]"), "needs photos"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, more: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(configuration(tmp_path, *more))


def test_at_least_one_photo(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one photo, got 0"):
        calibrate(configuration(tmp_path), photos=0)
