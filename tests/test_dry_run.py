"""`train_net.py --dry-run`: what runs, how large it is, what is missing, and what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import train_net
from twostage.config import load_config
from twostage.runs.dry_run import dry_run

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(
    path
    for path in (ROOT / "configs").rglob("*.yaml")
    if "ablations" not in path.relative_to(ROOT / "configs").parts
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_shipped_configuration_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = dry_run(load_config(path, ["DATASETS.ROOT=datasets"]))
    assert plan.wrong == []
    assert plan.parameters or not plan.parts[0].endswith("proposals") or "proposals:" not in plan.format()


@pytest.mark.parametrize(("backbone", "count"), [("r101c", 61_067_712), ("r50", 42_004_416)])
def test_trainable_parameters_of_the_paper(backbone: str, count: int) -> None:
    config = load_config(None, [f"MODEL.MASK_FORMER.BACKBONE={backbone}"])
    assert dry_run(config).parameters == {"stage one": count}


def test_a_prompt_is_sixteen_vectors_as_wide_as_the_text_tower() -> None:
    plan = dry_run(load_config(None, ["TASK=prompts", "PROPOSALS.NAME=", "CLIP.MODEL=ViT-L-14-quickgelu"]))
    assert plan.parameters == {"prompt": 16 * 768}


def test_what_is_missing_is_no_mistake(tmp_path: Path) -> None:
    words = [
        f"MODEL.WEIGHTS={tmp_path / 'model.pth'}",
        f"CLIP.PRETRAINED={tmp_path / 'clip.pt'}",
        f"CLIP.PROMPT={tmp_path / 'prompt.safetensors'}",
        f"DATASETS.ROOT={tmp_path}",
        "DATASETS.TEST=[folder:mine, shapes_test]",
        "TASK=self_training",
        f"SELF_TRAINING.START={tmp_path / 'R-103.pkl'}",
    ]
    plan = dry_run(load_config(None, words))
    assert plan.wrong == []
    text = "\n".join(plan.missing)
    assert len(plan.missing) == 5
    assert all(
        name in text for name in ("model.pth", "clip.pt", "prompt.safetensors", "folder:mine", "R-103")
    )
    assert "data set shapes_test: 500 photos, 20 classes, 15 seen" in plan.parts


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("CLIP.MODEL=ViT-B-61", "ViT-B-16"),
        ("CLIP.PRETRAINED=opena", "openai"),
        ("CLIP.PRETRAINED=checkpoint", "MODEL.WEIGHTS"),
        ("CLIP.TEMPLATES=imagnet", "imagenet"),
        ("CLIP.STAGE_ONE_TEMPLATES=sinle", "single"),
        ("MODEL.WEIGHTS=package:shape", "shapes"),
        ("MODEL.MASK_FORMER.BACKBONE=r5", "r50"),
        ("CLASSIFIER.NAME=crop", "crops"),
        ("CLASSIFIER.OPTIONS.TRESHOLD=1", "threshold"),
        ("DATASETS.TEST=shapes_tst", "shapes_test"),
        ("TEST.EXPECTED_RESULTS=[[shapes_test, ensemble, hIoU, 70.0, 1.0]]", "not evaluated"),
        ("TEST.SYSTEMS=[ensembel]", "ensemble"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(word: str, said: str) -> None:
    plan = dry_run(load_config(None, [word]))
    assert len(plan.wrong) == 1, plan.wrong
    assert said in plan.wrong[0]


def test_the_command_says_it_and_sets_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_net.py"])
    assert train_net.main(["--dry-run"]) == 0
    assert "stage one: 61,067,712 trainable parameters" in capsys.readouterr().out
    assert train_net.main(["--dry-run", "DENSE.NAME", "maskclap"]) == 1
    assert "WRONG: DENSE: " in capsys.readouterr().out
