"""`twostage export` and `twostage segment --onnx`, on a small random CLIP that names strips of photos."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_clip
import torch
from PIL import Image
from tiny_parts import write_photo

from twostage.cli import main
from twostage.config import load_config
from twostage.export import check, write
from twostage.export.deployed import open_folder
from twostage.export.manifest import CLIP_IMAGE, MANIFEST, ExportError, read_manifest

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="needs the extra twostage[onnx]")

Said = pytest.CaptureFixture[str]
WORDS = "cat|kitty, dog, other"
SYSTEM = """
MODEL: {DEVICE: cpu}
CLIP: {MODEL: test-export-vit, PRETRAINED: random, TEMPLATES: single}
PROPOSALS: {NAME: "tiny_parts:Strips"}
INPUT: {MIN_SIZE_TEST: 0}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """system.yaml, three photos, and out/, what the command made of it."""
    folder = tmp_path_factory.mktemp("export")
    sizes = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    small_clip.make(folder, "test-export-vit", sizes)
    (folder / "system.yaml").write_text(SYSTEM)
    for number, size_hw in enumerate(((40, 56), (33, 70), (100, 64))):
        write_photo(folder / "photos" / f"{number}.png", size_hw, number)
    assert export(folder, folder / "out", "--classes", WORDS, "--opset", "18") == 0
    return folder


def export(home: Path, out: Path, *more: str) -> int:
    return main(["export", "--model", str(home / "system.yaml"), "-o", str(out), *more])


def segment(home: Path, out: Path, *more: str) -> int:
    return main(["segment", str(home / "photos"), "-o", str(out), *more])


@pytest.fixture
def copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the real export stands in for new ones, so that further exports cost nothing."""

    def copy(visual: object, size_hw: tuple[int, int], path: Path, opset: int | None) -> int:
        shutil.copy(home / "out" / CLIP_IMAGE, path)
        return 18

    monkeypatch.setattr(write, "write_clip_image", copy)
    return home


def test_the_folder(home: Path) -> None:
    names = sorted(path.name for path in (home / "out").iterdir())
    assert names == ["clip_image.onnx", "manifest.json", "words.npz"]
    made = read_manifest(home / "out")
    assert made.opset == 18
    assert (made.stage_one, made.trained_names) == (None, ())
    assert made.words is not None
    assert made.words.classes == (("cat", "kitty"), ("dog",), ("other",))
    assert set(made.files) == {*names} - {MANIFEST}
    assert min(value for what, value in made.check.items() if "equal" in what) >= 0.999
    assert max(value for what, value in made.check.items() if "equal" not in what) <= 1e-3
    assert len(made.check) == 3


def test_segment_gives_the_labels_of_torch(home: Path, tmp_path: Path, capsys: Said) -> None:
    """Without --classes the folder's own words; words that are not stored need the text tower."""
    model = ["--model", str(home / "system.yaml")]
    for number, words in enumerate((WORDS, "moon, sun|star")):
        one, other = tmp_path / f"onnx{number}", tmp_path / f"torch{number}"
        chosen = [] if words == WORDS else ["--classes", words]
        assert segment(home, one, "--onnx", str(home / "out"), "--threads", "1", *chosen) == 0
        assert segment(home, other, *model, "--classes", words) == 0
        for name in ("0", "1", "2"):
            found, wanted = (np.array(Image.open(out / f"{name}_labels.png")) for out in (one, other))
            assert (found == wanted).mean() >= 0.999
            said = [json.loads((out / f"{name}.json").read_text())["classes"] for out in (one, other)]
            assert [entry["name"] for entry in said[0]] == [entry["name"] for entry in said[1]]
    assert "3 of 3 photos written" in capsys.readouterr().out


def test_test_time_options_still_count(home: Path) -> None:
    """Views of further sizes, mirrored: everything around the networks is the same code."""
    photo = torch.randint(0, 256, (3, 70, 90), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    overrides = ["TEST.AUG.ENABLED=true", "TEST.AUG.MIN_SIZES=[48,64]", "ENSEMBLE.OPTIONS.WEIGHT=0.3"]
    system, words = open_folder(home / "out", overrides=overrides)
    from twostage.predict import load

    wanted = load(str(home / "system.yaml"), overrides).segment(photo, words).labels
    assert float((system.segment(photo, words).labels == wanted).float().mean()) >= 0.999


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "DENSE.NAME=readout"], "DENSE.NAME: a folder holds stage one and crops only"),
        (["--set", "CLASSIFIER.NAME=pooled"], "an export covers crops only"),
        (["--set", "CLASSIFIER.OPTIONS.IMAGE_SIZE=48"], "takes crops of (32, 32) pixels, got 48"),
        (["--set", "PROPOSALS.NAME=maskformer"], "PROPOSALS.NAME maskformer: "),
        (["--set", "CLASSIFIER.OPTIONS.CHUNCK=1"], "Did you mean 'chunk'"),
        (["--set", "CLASSIFIER.OPTIONS.SKIP_FILLED=true"], "sees every patch; use --model"),
        (["--threads", "-1"], "--threads: expected 0 or more"),
        (["--classes", "cats, dog", "--set", "CLIP.PRETRAINED=gone.pt"], "no text features of 'cats'. Did"),
        (["--classes", "moon", "--set", "SEED=5"], "with other weights than the test-export-vit"),
    ],
)
def test_options_that_a_folder_cannot_follow(
    home: Path, tmp_path: Path, capsys: Said, more: list[str], words: str
) -> None:
    assert segment(home, tmp_path / "out", "--onnx", str(home / "out"), *more) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert words in said
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_run(home: Path, tmp_path: Path, capsys: Said) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(home / "out", folder)
    with (folder / CLIP_IMAGE).open("ab") as stream:
        stream.write(b"more")
    assert segment(home, tmp_path / "o", "--onnx", str(folder)) == 1
    assert f"{CLIP_IMAGE}: its sha256 is" in capsys.readouterr().err
    (folder / CLIP_IMAGE).unlink()
    assert segment(home, tmp_path / "o", "--onnx", str(folder)) == 1
    assert f"incomplete: {CLIP_IMAGE} is missing" in capsys.readouterr().err
    assert segment(home, tmp_path / "o", "--onnx", str(home / "photos")) == 1
    assert "expected a folder that `twostage export` wrote" in capsys.readouterr().err


def test_missing_packages(home: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name in ("onnxruntime", "onnxscript") else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert segment(home, tmp_path / "o", "--onnx", str(home / "out")) == 1
    assert "ONNX needs onnxruntime: pip install 'twostage[onnx]'" in capsys.readouterr().err
    assert export(home, tmp_path / "e") == 1
    assert "onnxruntime and onnxscript" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_an_export_without_words(copied: Path, tmp_path: Path, capsys: Said) -> None:
    assert export(copied, tmp_path / "e", "--no-check") == 0
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [CLIP_IMAGE, MANIFEST]
    assert segment(copied, tmp_path / "o", "--onnx", str(tmp_path / "e")) == 1
    assert "comes without words" in capsys.readouterr().err
    system, words = open_folder(tmp_path / "e", "cat, moon")
    assert system.words(words).vocabulary.shown == ("cat", "moon")
    with pytest.raises(ExportError, match="no text features of 'cat', 'moon'"):
        open_folder(tmp_path / "e", "x", ["CLIP.PRETRAINED=gone.pt"])[0].words("cat, moon")


def test_a_failed_check_leaves_what_was_there(
    copied: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TOLERANCE", 0.0)
    assert export(copied, tmp_path / "e") == 1
    said = capsys.readouterr()
    assert "<- too far" in said.out
    assert "differ from torch; nothing was written" in said.err
    assert not (tmp_path / "e").exists()
    shutil.copytree(copied / "out", tmp_path / "old")
    assert export(copied, tmp_path / "old") == 1
    assert sorted(path.name for path in (tmp_path / "old").iterdir()) == sorted(
        path.name for path in (copied / "out").iterdir()
    )
    assert read_manifest(tmp_path / "old") == read_manifest(copied / "out")


def test_another_network_in_the_file_is_found(
    copied: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check compares with the configuration's own weights."""
    assert export(copied, tmp_path / "e", "--set", "SEED=6") == 1  # CLIP's random weights are others
    said = capsys.readouterr().out
    assert "CLIP features of 1:" in said
    assert "<- too far" in said


def test_a_new_export_takes_the_place_of_the_old(copied: Path, tmp_path: Path, capsys: Said) -> None:
    shutil.copytree(copied / "out", tmp_path / "e")
    (tmp_path / "e" / "note.txt").write_text("mine")
    dense = ["DENSE.NAME=readout", "ENSEMBLE.OPTIONS.UNCOVERED=dense"]
    assert export(copied, tmp_path / "e", "--no-check", "--set", *dense) == 0
    assert "Note: DENSE.NAME readout is left out" in capsys.readouterr().out
    assert not (tmp_path / "e" / "words.npz").exists()
    assert (tmp_path / "e" / "note.txt").read_text() == "mine"
    system, _ = open_folder(tmp_path / "e", "cat, dog")
    assert (system.config.dense.name, system.config.ensemble.options["uncovered"]) == ("", "argmax")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--opset", "12"], "--opset: expected at least 18, got 12"),
        (["--set", "CLASSIFIER.NAME=pooled"], "an export covers crops only"),
        (["--set", "PROPOSALS.NAME=maskformer"], "MODEL.WEIGHTS is empty"),
    ],
)
def test_exports_that_cannot_be(
    home: Path, tmp_path: Path, capsys: Said, more: list[str], words: str
) -> None:
    assert export(home, tmp_path / "e", *more) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


def test_what_torch_cannot_write(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match=r"clip_image\.onnx: torch cannot write .* \(no such operator\)"):
        write.export(load_config(home / "system.yaml"), tmp_path / "e")


def test_the_configuration_travels_in_the_manifest(home: Path) -> None:
    from twostage.config import parse_config

    text = read_manifest(home / "out").config
    assert parse_config(text) == load_config(home / "system.yaml")
