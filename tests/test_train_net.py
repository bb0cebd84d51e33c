"""The command: what it parses, whom it calls, and how it ends."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from twostage.config import Config, parse_config
from twostage.engine.signals import TrainingInterrupted
from twostage.errors import TwostageError

SCRIPT = Path(__file__).resolve().parents[1] / "train_net.py"


@pytest.fixture
def train_net() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_net_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config, bool]]:
    made: list[tuple[str, Config, bool]] = []
    from twostage import build

    monkeypatch.setattr(build, "train", lambda config, resume: made.append(("train", config, resume)))
    monkeypatch.setattr(build, "evaluate", lambda config, resume: made.append(("evaluate", config, resume)))
    return made


def test_trains_and_leaves_its_configuration(train_net: ModuleType, calls: list[Any], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")
    out = tmp_path / "out"
    words = ["--config-file", str(tmp_path / "run.yaml"), "--resume", "OUTPUT_DIR", str(out), "seed=4"]
    assert train_net.main(words) == 0
    [(what, config, resume)] = calls
    assert (what, resume, config.solver.max_iter, config.seed) == ("train", True, 7, 4)
    assert parse_config((out / "config.yaml").read_text()) == config
    assert "torch" in (out / "log.txt").read_text()


def test_options_may_follow_keys(train_net: ModuleType, calls: list[Any], tmp_path: Path) -> None:
    assert train_net.main(["MODEL.WEIGHTS", "w.pth", "--eval-only", f"output_dir={tmp_path}"]) == 0
    [(what, config, resume)] = calls
    assert (what, config.model.weights, resume) == ("evaluate", "w.pth", False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config-file", "gone.yaml"], "Cannot read the configuration file gone.yaml"),
        (["SOLVER.MAX_ITR", "3"], "Did you mean 'SOLVER.MAX_ITER'?"),
        (["--num-gpus", "4096"], "--num-gpus: expected 0 to"),
        (["--num-machines", "2"], "--dist-url: several machines need a common address"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank: expected 0 to 1, got 2"),
    ],
)
def test_mistakes_end_in_one_line(
    train_net: ModuleType, calls: list[Any], capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert train_net.main(words) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("Error: ")
    assert not calls


def test_errors_and_interruptions_of_the_work(
    train_net: ModuleType,
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from twostage import build

    def fails(error: Exception) -> Any:
        def work(config: Config, resume: bool) -> None:
            raise error

        return work

    monkeypatch.setattr(build, "train", fails(TwostageError("No such data set.")))
    assert train_net.main([f"output_dir={tmp_path}"]) == 1
    assert "Error: No such data set." in capsys.readouterr().err
    monkeypatch.setattr(build, "train", fails(TrainingInterrupted("Saved. Go on with --resume.", 130)))
    assert train_net.main([f"output_dir={tmp_path}"]) == 130
    monkeypatch.setattr(build, "train", fails(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):  # a mistake of ours keeps its traceback
        train_net.main([f"output_dir={tmp_path}"])


def test_output_folder_that_cannot_be(
    train_net: ModuleType, calls: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert train_net.main([f"output_dir={tmp_path / 'file' / 'out'}"]) == 1
    assert "OUTPUT_DIR: cannot write to" in capsys.readouterr().err
    assert not calls


def test_help_names_the_options_of_detectron2() -> None:
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in (
        "config-file",
        "num-gpus",
        "num-machines",
        "machine-rank",
        "dist-url",
        "resume",
        "eval-only",
    ):
        assert f"--{option}" in told
