"""Tables and results files: what is printed and what is stored."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from twostage.errors import TwostageError
from twostage.evaluation import provenance as provenance_module
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import compute
from twostage.evaluation.provenance import device_name, git_revision, provenance, versions
from twostage.evaluation.recall import Recall
from twostage.evaluation.report import class_table, recall_table, row, summary_table, write_results
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary((("cat",), ("sofa", "couch"), ("Übergröße",)), (True, False, True))


def rows() -> list[dict]:
    out = []
    for system, pred in (("ensemble", [[0, 0, 1, 1]]), ("clip only", [[0, 1, 1, -1]])):
        matrix = ConfusionMatrix(3)
        matrix.update(torch.tensor(pred), torch.tensor([[0, 0, 1, 1]]))
        out.append(row(system, compute(matrix, WORDS), images=1))
    return out


def test_summary_has_a_line_a_system_with_aligned_numbers() -> None:
    lines = summary_table(rows()).splitlines()
    assert lines[0].split() == [
        "system", "seen", "unseen", "hIoU", "mIoU", "mIoU_skip", "pAcc", "mAcc", "fwIoU",
    ]  # fmt: skip
    assert lines[2].split() == ["ensemble", *["100.0"] * 8]
    assert lines[3].split()[2:6] == ["50.0", "33.3", "40.0", "41.7"]
    assert len({len(line) for line in lines}) == 1


def test_missing_numbers_show_as_dashes() -> None:
    table = summary_table([{"system": "x", "seen": None, "mIoU": math.nan, "pAcc": 12.345}])
    assert table.splitlines()[2].split() == ["x", "-", "-", "-", "-", "-", "12.3", "-", "-"]


def test_class_table_keeps_every_class() -> None:
    lines = class_table(rows()).splitlines()
    assert lines[2].split() == ["cat", "seen", "50.0", "100.0", "50.0"]
    assert lines[3].split() == ["sofa", "unseen", "50.0", "100.0", "33.3"]
    assert lines[4].split() == ["Übergröße", "seen", "0.0", "-", "-"]


def test_tables_of_nothing_are_heads_alone() -> None:
    assert len(summary_table([]).splitlines()) == 2
    assert len(class_table([]).splitlines()) == 2


def test_recall_table() -> None:
    lines = recall_table(
        {"all": Recall(4, 75.0, 50.0, 61.25), "unseen": Recall(0, None, None, None)}
    ).splitlines()
    assert lines[2].split() == ["all", "4", "75.0", "50.0", "61.2"]
    assert lines[3].split() == ["unseen", "0", "-", "-", "-"]


def test_results_file_holds_rows_and_provenance_unrounded(tmp_path: Path) -> None:
    written = rows()
    written[0]["note"] = math.nan
    origin = provenance(
        WORDS, dataset="shapes_test", seeds={"scenes": 3}, templates=["a {}."], command=["x", "a b"]
    )
    path = write_results(tmp_path / "inference" / "results.json", written, origin, oracle={"mIoU": 1.5})
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["system"] for entry in stored["systems"]] == ["ensemble", "clip only"]
    assert stored["systems"][1]["unseen"] == written[1]["unseen"] == pytest.approx(100 / 3, abs=1e-12)
    assert stored["systems"][0]["note"] is None
    assert stored["systems"][0]["images"] == 1
    assert stored["oracle"] == {"mIoU": 1.5}
    assert {"seen", "unseen", "hIoU", "mIoU", "mIoU_skip", "pAcc", "mAcc", "fwIoU", "classes"} <= set(
        stored["systems"][0]
    )
    assert stored["provenance"]["command"] == "x 'a b'"
    assert stored["provenance"]["vocabulary"]["seen"] == ["cat", "Übergröße"]
    assert stored["provenance"]["vocabulary"]["digest"] == WORDS.digest
    assert stored["provenance"]["seeds"] == {"scenes": 3}
    assert "penalise" in stored["provenance"]["miou_convention"]["mIoU"]


def test_a_refused_result_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_results(tmp_path / "results.json", rows(), {})
    before = path.read_bytes()
    with pytest.raises(TwostageError, match="occur twice: ensemble"):
        write_results(path, [*rows(), rows()[0]], {})
    with pytest.raises(TwostageError, match="weights: expected plain data, got Tensor"):
        write_results(path, rows(), {"weights": torch.ones(1)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance_module, "PACKAGES", ("torch", "no-such-package"))
    found = versions()
    assert found["no-such-package"] is None
    assert found["torch"] is not None


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_revision_of_a_checkout_and_of_a_plain_folder(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_revision(tmp_path) is None  # a folder of that name, but no repository
    (tmp_path / ".git").rmdir()
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    (tmp_path / "file").write_text("one")
    for arguments in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    revision = git_revision(tmp_path)
    assert revision is not None
    assert len(revision) == 40
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == revision + "+changes"


def test_no_git_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None


def test_device_is_named() -> None:
    assert device_name("cpu").startswith("cpu (")
