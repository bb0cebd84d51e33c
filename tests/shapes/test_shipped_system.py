"""The system that ships with the package, as a user meets it: good on drawn scenes without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import twostage
from twostage import build
from twostage.cli import main
from twostage.config import load_config
from twostage.data.export import export_folder
from twostage.data.shapes.classes import CLASSES
from twostage.data.shapes.dataset import ShapesDataset
from twostage.networks import shipped

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_ensemble_beats_its_parts_on_unseen_scenes(tmp_path: Path) -> None:
    config = load_config(
        ROOT / "configs" / "shapes" / "zero_shot.yaml",
        ["MODEL.WEIGHTS=package:shapes", "TEST.MAX_IMAGES=80", "TEST.OVERLAYS=1", f"OUTPUT_DIR={tmp_path}"],
    )
    outcome = build.evaluate(config)["shapes_test"]
    scores = {name: metrics.hIoU or 0.0 for name, metrics in outcome.metrics.items()}
    assert scores["ensemble"] > 58  # 67.4 on all 500 scenes
    for part in ("stage one", "CLIP crops", "dense"):
        assert scores["ensemble"] > scores[part] + 5, part
    assert scores["oracle masks"] > 90
    stored = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert {row["system"] for row in stored["systems"]} == set(scores)
    unseen = [name for name in CLASSES if name not in stored["provenance"]["vocabulary"]["seen"]]
    assert unseen == ["gravel", "checkered ball", "dotted star", "mushroom", "boat"]


def test_weights_are_small() -> None:
    assert Path(shipped("package:shapes")).stat().st_size < 6_000_000


def test_segment_names_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = ShapesDataset("test", length=6)
    export_folder(dataset, tmp_path / "scenes", "test")
    assert main(["segment", str(tmp_path / "scenes" / "images"), "-o", str(tmp_path / "out")]) == 0
    assert "twenty words" in capsys.readouterr().out
    right = total = 0
    for index in range(len(dataset)):
        truth = dataset[index]
        assert truth.labels is not None
        said = json.loads((tmp_path / "out" / f"{truth.image_id}.json").read_text())
        assert (said["height"], said["width"]) == truth.labels.shape
        largest = {entry["name"] for entry in said["classes"] if entry["share"] > 0.05}
        present = {CLASSES[k] for k in truth.labels.unique().tolist()}
        right, total = right + len(largest & present), total + len(largest)
        assert all(0 < entry["score"] <= 1 for entry in said["classes"])
    assert right / total > 0.85


def test_words_of_ones_own(tmp_path: Path) -> None:
    scene = ShapesDataset("test")[0]  # a dotted star on snow, sand and gravel
    result = twostage.load("shapes").segment(scene.image, "snow, sand, gravel, dotted star, boat")
    assert result.labels.shape == scene.labels.shape  # type: ignore[union-attr]
    shares = result.labels.flatten().bincount(minlength=5) / result.labels.numel()
    assert shares[3] == pytest.approx(0.075, abs=0.03)
    assert shares[4] < 0.02
