"""Stage one on real photos, real text features: TWOSTAGE_TEST_DATA holds coco100/ and text_embeddings/."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from types import ModuleType

import pytest

DATA = os.environ.get("TWOSTAGE_TEST_DATA", "")
REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "configs" / "real" / "coco100.yaml"
UNSEEN = {
    *("giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard", "playingfield"),
    *("river", "road", "tree-merged", "grass-merged"),
}
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA, reason="TWOSTAGE_TEST_DATA is not set: it names the folder of real photos"),
]


@pytest.fixture
def train_net() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_net_on_photos", REPOSITORY / "train_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(out: Path, *more: str) -> list[str]:
    """A run of coco100.yaml with a network of toy size."""
    network = {
        "SMALL_WIDTHS": [8, 8, 16, 16],
        "SMALL_BLOCKS": [0, 0, 1, 1],
        "PIXEL_DIM": 16,
        "MASK_DIM": 16,
        "HIDDEN_DIM": 16,
        "NUM_QUERIES": 8,
        "DECODER_LAYERS": 2,
        "FEEDFORWARD_DIM": 16,
        "CLASS_HIDDEN_DIM": 16,
    }
    options = {
        "OUTPUT_DIR": out,
        "MODEL.DEVICE": "cpu",
        "CLIP.TEXT_FEATURES": Path(DATA) / "text_embeddings" / "zegclip_coco_single.npy",
        "CLIP.TEXT_NAMES": CONFIG.parent / "coco_stuff_names.json",
        "DATASETS.ROOT": DATA,
        "INPUT.MIN_SIZE_TRAIN": [64, 96],
        "INPUT.CROP_SIZE": 64,
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 5,
        "SOLVER.WARMUP_ITERS": 0,
        "SOLVER.LOG_PERIOD": 1,
        "SOLVER.AMP": "off",
        "TEST.MAX_IMAGES": 3,
        "TEST.OVERLAYS": 1,
        **{f"MODEL.MASK_FORMER.{name}": value for name, value in network.items()},
    }
    pairs = [str(part) for pair in options.items() for part in pair]
    return ["--config-file", str(CONFIG), *pairs, *more]


def test_trains_and_measures_stage_one(train_net: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train_net.main(command(out)) == 0
    lines = [json.loads(line) for line in (out / "metrics.json").read_text().splitlines()]
    updates = [line for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in updates] == [0, 1, 2, 3, 4]
    for line in updates:
        terms = {name: value for name, value in line.items() if "loss" in name}
        assert {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0", "loss_pixel"} <= set(terms)
        assert all(math.isfinite(value) and value > 0 for value in terms.values()), line
    results = json.loads((out / "inference" / "results.json").read_text())
    assert [row["system"] for row in results["systems"]] == ["ensemble", "oracle classes"]
    classes = results["systems"][0]["classes"]
    assert len(classes) == 129
    assert {one["name"] for one in classes if not one["seen"]} == UNSEEN
    recall = results["proposals"]
    assert recall["all"]["masks"] == recall["seen"]["masks"] + recall["unseen"]["masks"] > 10
    assert 0 <= recall["all"]["recall_50"] <= 100
    assert len(list((out / "inference" / "overlays").glob("*.png"))) == 1

    # Its checkpoint, read again, says the same of the same photos.
    again = [
        "--eval-only",
        "MODEL.WEIGHTS",
        str(out / "model_final.pth"),
        "OUTPUT_DIR",
        str(tmp_path / "again"),
    ]
    assert train_net.main(command(out, *again)) == 0
    second = json.loads((tmp_path / "again" / "inference" / "results.json").read_text())
    assert second["proposals"] == recall
    assert second["systems"] == results["systems"]
