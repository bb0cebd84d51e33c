"""The command `twostage`, called as a person would, in this process and once as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_parts import write_photo, write_system

from twostage import registry, zoo
from twostage.cli import main
from twostage.clip.prompts import available
from twostage.data.photo_list import find_photos, output_names
from twostage.errors import TwostageError

Said = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos, one of them broken, and a note."""
    folder = tmp_path / "photos"
    write_photo(folder / "beach.png", (20, 30), 1)
    write_photo(folder / "deep" / "forest.jpg", (30, 20), 2)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (folder / "note.md").write_text("not a photo")
    return folder


def segment(tmp_path: Path, *words: str, classes: str | None = "cat, sofa|couch, other") -> int:
    chosen = [] if classes is None else ["--classes", classes]
    model = ["--model", str(write_system(tmp_path))]
    return main(["segment", *words, *model, *chosen, "-o", str(tmp_path / "out")])


def test_three_files_a_photo(tmp_path: Path, photos: Path, capsys: Said) -> None:
    assert segment(tmp_path, str(photos / "beach.png")) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "beach.json",
        "beach_labels.png",
        "beach_overlay.png",
    ]
    labels = np.array(Image.open(out / "beach_labels.png"))
    assert labels.shape == (20, 30)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}
    summary = json.loads((out / "beach.json").read_text())
    assert (summary["height"], summary["width"]) == (20, 30)
    assert sum(entry["pixels"] for entry in summary["classes"]) + summary["void_pixels"] == 600
    said = capsys.readouterr()
    assert str(out / "beach_overlay.png") in said.out
    assert "1 of 1 photos written" in said.out
    assert said.err == ""


def test_one_bad_photo_does_not_stop_the_others(tmp_path: Path, photos: Path, capsys: Said) -> None:
    assert segment(tmp_path, str(photos)) == 1
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"beach_labels.png", "forest_labels.png"} < written
    assert not any(name.startswith(("broken", "note")) for name in written)
    said = capsys.readouterr()
    assert "2 of 3 photos written" in said.out
    assert "broken.jpg" in said.err
    assert "Traceback" not in said.err


def test_a_missing_photo_among_others(tmp_path: Path, photos: Path, capsys: Said) -> None:
    assert segment(tmp_path, str(photos / "beach.png"), str(photos / "nowhere.png")) == 1
    assert "nowhere.png" in capsys.readouterr().err
    assert (tmp_path / "out" / "beach.json").is_file()


def test_output_of_an_earlier_run_is_no_photo(tmp_path: Path, photos: Path) -> None:
    (photos / "broken.jpg").unlink()
    words = ["segment", str(photos), "--model", str(write_system(tmp_path)), "--classes", "a, b"]
    for _ in range(2):
        assert main([*words, "-o", str(photos / "out")]) == 0
    assert len(list((photos / "out").iterdir())) == 6


def test_photos_beside_the_output(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(find_photos([str(photos)], photos)) == 3, "a folder that is asked for itself is searched"
    monkeypatch.chdir(photos)
    assert find_photos(["beach.png", ".", "beach.png"], Path("out")) == [
        Path("beach.png"),
        Path("broken.jpg"),
        Path("deep/forest.jpg"),
    ]


@pytest.mark.parametrize(
    ("photos_given", "names"),
    [
        (["a/x.jpg", "b/x.png"], ["x", "x_2"]),
        (["a/x.jpg", "b/x.png", "x_2.jpg"], ["x", "x_3", "x_2"]),
        (["x_2.jpg", "a/x.jpg", "b/x.jpg", "c/x.jpg"], ["x_2", "x", "x_3", "x_4"]),
        ([], []),
    ],
)
def test_no_output_hides_another(photos_given: list[str], names: list[str]) -> None:
    given = [Path(photo) for photo in photos_given]
    assert output_names(given) == list(zip(names, given, strict=True))


@pytest.mark.parametrize(
    ("words", "classes", "message"),
    [
        (["nowhere.jpg"], "cat", "No such file or folder: nowhere.jpg"),
        (["{photos}/empty"], "cat", "holds no photos"),
        (["{photos}"], "", "The class list is empty"),
        (["{photos}"], " , ", "The class list is empty"),
        (["{photos}"], "cat, cat", "occur twice: cat"),
        (["{photos}"], "nowhere.txt", "Cannot read the class list nowhere.txt"),
        (["{photos}"], None, "Say which words to look for"),
        (["{photos}", "--set", "PROPOSALS.NAMES=x"], "cat", "unknown option PROPOSALS.NAMES"),
        (["{photos}", "--set", "PROPOSALS.OPTIONS.CUONT=2"], "cat", "Did you mean 'count'"),
        (["{photos}", "--set", "ENSEMBLE.OPTIONS.WEIGHT=2"], "cat", "weight must be at most 1"),
        (["{photos}", "--set", "CLIP.MODEL=nobody"], "cat", "unknown model 'nobody'"),
        (["{photos}", "--set", "CLIP.TEMPLATES=nobody"], "cat", "neither a set nor a readable file"),
    ],
)
def test_mistakes_end_with_one_sentence(
    tmp_path: Path, photos: Path, capsys: Said, words: list[str], classes: str | None, message: str
) -> None:
    (photos / "empty").mkdir()
    assert segment(tmp_path, *(word.format(photos=photos) for word in words), classes=classes) == 1
    said = capsys.readouterr()
    assert said.err.startswith("Error: ")
    assert message in said.err
    assert not (tmp_path / "out").exists()


def test_unknown_system(photos: Path, capsys: Said) -> None:
    assert main(["segment", str(photos), "--model", "sam-vit-b61", "--classes", "a"]) == 1
    assert "Did you mean 'sam-vit-b16'" in capsys.readouterr().err


def test_a_misspelt_system_is_said_before_words_are_asked_for(photos: Path, capsys: Said) -> None:
    assert main(["segment", str(photos / "beach.png"), "--model", "shape"]) == 1
    assert "Did you mean 'shapes'?" in capsys.readouterr().err


def testown_words_of_the_drawn_world_only() -> None:
    from twostage.cli.segment import own_words

    assert len(own_words("shapes")) == 20
    with pytest.raises(TwostageError, match="--classes"):
        own_words("sam-vit-b16")


def test_stopping_is_no_accident(monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    def stop() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "names", stop)
    assert main(["models"]) == 130
    assert "files already written are whole" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["paint"], ["segment"], ["data"], ["data", "export", "shapes_val"]])
def test_commands_that_do_not_exist(words: list[str], capsys: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: twostage" in capsys.readouterr().err


def test_export_and_check(tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "world"
    assert main(["data", "export", "shapes_val", str(out), "--count", "2"]) == 0
    assert f"folder:{out}@shapes_val" in capsys.readouterr().out
    assert len(list((out / "images" / "shapes_val").iterdir())) == 2
    report = tmp_path / "report.json"
    assert main(["data", "check", str(out), "--json", str(report), "--workers", "1"]) == 0
    assert "gravel" in capsys.readouterr().out
    assert json.loads(report.read_text())
    copy = tmp_path / "copy"
    assert main(["data", "export", f"folder:{out}@shapes_val", str(copy)]) == 0
    assert f"folder:{copy}@shapes_val" in capsys.readouterr().out
    masks = [folder / "masks" / "shapes_val" / "val_000001.png" for folder in (out, copy)]
    assert np.array_equal(*(np.array(Image.open(mask)) for mask in masks))


def test_check_finds_what_is_wrong(tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "world"
    assert main(["data", "export", "shapes_val", str(out), "--count", "2", "--split", "val"]) == 0
    (out / "images" / "val" / "val_000000.png").write_bytes(b"gone")
    assert main(["data", "check", str(out), "--split", "val", "--workers", "1"]) == 1
    assert "val_000000.png" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "nowhere")]) == 1
    assert main(["data", "export", "shapes_vale", str(out)]) == 1
    assert "Did you mean 'shapes_val'" in capsys.readouterr().err


def test_listings(capsys: Said) -> None:
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed and zoo.describe(name) in listed for name in zoo.names())
    assert main(["components"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for kind in registry.KINDS for name in [kind, *registry.names(kind)])
    assert main(["prompts"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in available())
    assert main(["prompts", "single"]) == 0
    assert "{}" in capsys.readouterr().out
    assert main(["prompts", "singel"]) == 1
    assert "Did you mean 'single'" in capsys.readouterr().err


def test_as_a_program_of_its_own() -> None:
    """Help comes without torch, so it comes at once; the version is the package's."""
    code = (
        "import sys; sys.argv = ['twostage', '--version']; from twostage.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules, 'the command line should import torch in its commands only'\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("twostage 0.")
    ran = subprocess.run(
        [sys.executable, "-m", "twostage.cli", "prompts"], capture_output=True, text=True, check=True
    )
    assert "vild" in ran.stdout
