"""`twostage segment` on many photos: what is done is left alone, what failed is listed, a cut goes on."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from halves import label_halves
from PIL import Image
from tiny_parts import write_photo, write_system

from twostage.cli import main
from twostage.data.atomic import sweep
from twostage.data.photo_list import Shot
from twostage.predict import System
from twostage.runs.finished import Finished

Said = pytest.CaptureFixture[str]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos and a broken one."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["a.png", "b.png", "deep/a.png", "deep/c.png"]):
        write_photo(folder / name, (8, 12), seed)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    write_system(tmp_path)
    return folder


def segment(folder: Path, *words: str, classes: str = "cat, sofa, other") -> int:
    given = ["--model", str(folder / "system.yaml"), "--classes", classes, "-o", str(folder / "out")]
    return main(["segment", *words, *given])


def contents(out: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*given: Any, **more: Any) -> None:
        raise AssertionError("nothing is left to label")

    monkeypatch.setattr(System, "__init__", loaded)


def test_what_is_done_is_left_alone(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "broken.jpg").unlink()
    assert segment(tmp_path, str(photos)) == 0
    assert "4 of 4 photos written" in capsys.readouterr().out
    before = contents(tmp_path / "out")
    assert sorted(before) == sorted(
        f"{name}{end}" for name in ("a", "b", "a_2", "c") for end in (".json", "_labels.png", "_overlay.png")
    )
    with monkeypatch.context() as patch:
        forbid_loading(patch)
        assert segment(tmp_path, str(photos)) == 0
    said = capsys.readouterr().out
    assert said == "4 of 4 already done; --again to redo them\n"
    assert contents(tmp_path / "out") == before
    assert segment(tmp_path, str(photos), "--again") == 0
    assert "4 of 4 photos written" in capsys.readouterr().out
    after = contents(tmp_path / "out")
    assert {name: raw for name, (raw, _) in after.items()} == {name: raw for name, (raw, _) in before.items()}
    assert all(after[name][1] > before[name][1] for name in before)


def test_what_changed_is_made_anew_and_said(tmp_path: Path, photos: Path, capsys: Said) -> None:
    (photos / "broken.jpg").unlink()
    assert segment(tmp_path, str(photos)) == 0
    capsys.readouterr()
    assert segment(tmp_path, str(photos), classes="cat, sofa, others") == 0
    assert "4 of 4 were made with other classes and are made anew" in capsys.readouterr().out
    assert segment(tmp_path, str(photos), "--set", "PROPOSALS.OPTIONS.COUNT=2", classes="cat, dog") == 0
    assert "4 of 4 were made with other classes and options and are made anew" in capsys.readouterr().out
    assert segment(tmp_path, str(photos), classes="cat, dog") == 0
    assert "4 of 4 were made with other options and are made anew" in capsys.readouterr().out
    write_photo(photos / "b.png", (9, 9), 7)
    (tmp_path / "out" / "c_labels.png").unlink()
    (tmp_path / "out" / "a_2.json").write_text("{half")
    assert segment(tmp_path, str(photos), classes="cat, dog") == 0
    said = capsys.readouterr().out
    assert "1 of 4 already done" in said
    assert "1 of 4 were made with another photo" in said
    assert "3 of 3 photos written" in said
    assert json.loads((tmp_path / "out" / "b.json").read_text())["height"] == 9
    # a/a.png is gone, so deep/a.png gets its names
    (photos / "a.png").unlink()
    assert segment(tmp_path, str(photos), classes="cat, dog") == 0
    assert "1 of 3 were made with another photo" in capsys.readouterr().out
    made_of = json.loads((tmp_path / "out" / "a.json").read_text())["made_of"]
    assert made_of["path"] == str((photos / "deep" / "a.png").resolve())


@pytest.mark.parametrize(
    "text", ["[]", "{}", "1", "", '{"made_of": "x"}', '{"made_of": 1, "overlay_file": "", "labels_file": ""}']
)
def test_a_summary_of_somebody_else_is_no_finished_photo(tmp_path: Path, text: str) -> None:
    shot = Shot("a", write_photo(tmp_path / "a.png"))
    (tmp_path / "a.json").write_text(text)
    finished = Finished(tmp_path, {"classes": "x"})
    assert list(finished.pending([shot, Shot("b", tmp_path / "nowhere.png")])) == [
        shot,
        Shot("b", tmp_path / "nowhere.png"),
    ]
    assert (finished.done, finished.told(2)) == (0, [])


def test_other_weights_under_the_same_name_are_other_options(
    tmp_path: Path, photos: Path, capsys: Said
) -> None:
    names = tmp_path / "templates.txt"
    names.write_text("a photo of {}\n")
    words = [str(photos / "b.png"), "--set", f"CLIP.TEMPLATES={names}"]
    assert segment(tmp_path, *words) == 0
    names.write_text("a drawing of {}\n")
    assert segment(tmp_path, *words) == 0
    assert "made with other options" in capsys.readouterr().out


def test_an_interrupted_rewriting_does_not_pass_for_the_old_state(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The overlay is new, the summary was not written: with the old words the photo is not done."""
    photo = str(photos / "b.png")
    assert segment(tmp_path, photo) == 0
    with monkeypatch.context() as patch:
        patch.setattr("twostage.visualize.files.write_label_png", lambda *args, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segment(tmp_path, photo, classes="one")
    capsys.readouterr()
    assert segment(tmp_path, photo) == 0
    assert "1 of 1 photos written" in capsys.readouterr().out


def test_failures_are_listed_in_a_file_that_can_be_tried_again(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    given = ["./#1.png", "b.png", "broken.jpg", "", "#1.png", "lost.png"]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf# photos\r\n" + "\r\n".join(given).encode() + b"\r\n")
    assert segment(tmp_path, "--list", str(tmp_path / "list.txt")) == 1
    said = capsys.readouterr()
    assert "1 of 4 photos written" in said.out
    assert said.err.count("Failed: ") == 3
    failed = tmp_path / "out" / "failed.txt"
    lines = failed.read_text().splitlines()
    assert [line for line in lines if not line.startswith("# ")] == ["./#1.png", "broken.jpg", "lost.png"]
    assert any("not an image" in line or "broken or cut off" in line for line in lines)
    for name in ("broken.jpg", "#1.png", "lost.png"):
        write_photo(photos / name, (4, 4))
    assert segment(tmp_path, "--list", str(failed)) == 0
    assert "3 of 3 photos written" in capsys.readouterr().out
    assert not failed.exists()


def test_many_failures_are_not_all_said(tmp_path: Path, photos: Path, capsys: Said) -> None:
    for number in range(30):
        (photos / f"x{number}.jpg").write_bytes(b"no")
    assert segment(tmp_path, str(photos)) == 1
    said = capsys.readouterr()
    assert said.err.count("Failed: ") == 21
    assert "Failed: 11 more, see" in said.err
    assert (tmp_path / "out" / "failed.txt").read_text().count(".jpg\n") == 31


def test_lists(tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{photos / 'b.png'}\n{photos / 'deep'}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert segment(tmp_path, "--list", "-") == 0
    assert "3 of 3 photos written" in capsys.readouterr().out
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    for name, message in [
        ("nowhere.txt", "cannot be read"),
        ("empty.txt", "names no photo"),
        ("binary.txt", "is no path"),
    ]:
        assert segment(tmp_path, "--list", str(tmp_path / name)) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to segment"),
        (["a.png", "--video", "b.avi"], "not both"),
        (["a.png", "--every", "2"], "are for --video"),
        (["a.png", "--film"], "are for --video"),
        (["--video", "b.avi", "--every", "0"], "expected 1 or more, got 0"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: Said, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        segment(tmp_path, *words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_too_little_memory_for_one_photo(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photo(photos / "b.png", (30, 30), 7)
    real = System.segment

    def hungry(self: System, photo: Any, classes: Any, *more: Any) -> Any:
        if photo.shape[1] == 30:
            torch.empty(1 << 55)
        return real(self, photo, classes, *more)

    monkeypatch.setattr(System, "segment", hungry)
    assert segment(tmp_path, str(photos / "b.png"), str(photos / "deep")) == 1
    said = capsys.readouterr()
    assert "2 of 3 photos written" in said.out
    assert "b.png: out of memory. Look at it at a smaller size (--set INPUT.MIN_SIZE_TEST=512)" in said.err


def test_a_signal_ends_with_what_is_done_and_says_how_to_go_on(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "broken.jpg").unlink()
    real, asked = System.segment, []

    def stopping(self: System, photo: Any, classes: Any, *more: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, photo, classes, *more)

    with monkeypatch.context() as patch:
        patch.setattr(System, "segment", stopping)
        assert segment(tmp_path, str(photos)) == 128 + signal.SIGTERM
    said = capsys.readouterr()
    assert "2 of 4 photos written" in said.out
    assert "Stopped: as asked. The same command goes on from here." in said.err
    assert segment(tmp_path, str(photos)) == 0
    said = capsys.readouterr()
    assert "2 of 4 already done" in said.out
    assert "2 of 2 photos written" in said.out


def test_killed_in_the_middle(tmp_path: Path) -> None:
    for number in range(24):
        write_photo(tmp_path / "photos" / f"{number:02d}.png", (40, 50), number)
    out = tmp_path / "out"
    program = [sys.executable, str(Path(__file__).with_name("halves.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(program, env=environment)
    limit = time.monotonic() + 120
    while len(list(out.glob("*.json"))) < 3 and time.monotonic() < limit:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = sorted(path.stem for path in out.glob("*.json"))
    assert 3 <= len(done) < 24
    for path in out.glob("[0-9]*"):  # whatever has its name is whole
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            with Image.open(path) as picture:
                picture.load()
    before = contents(out)
    assert label_halves(tmp_path) == (len(done), 24 - len(done))
    sweep(out, seconds=0)
    after = contents(out)
    assert len(after) == 72, "three files a photo, and nothing half"
    for name in done:
        for end in (".json", "_labels.png", "_overlay.png"):
            assert after[name + end] == before[name + end]


def film(path: Path, count: int, code: str = "MJPG") -> Path:
    """A video whose frames are of one colour each, ever brighter."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (32, 24))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no such video")
    for number in range(count):
        writer.write(np.full((24, 32, 3), 20 * number + 10, np.uint8))
    writer.release()
    return path


def test_frames_of_a_video(
    tmp_path: Path, photos: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    video = film(tmp_path / "clip.avi", 8)
    real, greys = System.segment, []

    def noting(self: System, photo: Any, classes: Any, *more: Any) -> Any:
        greys.append(float(photo.float().mean()))
        return real(self, photo, classes, *more)

    monkeypatch.setattr(System, "segment", noting)
    assert segment(tmp_path, "--video", str(video), "--every", "3") == 0
    out = tmp_path / "out"
    frames = ["clip_000000", "clip_000003", "clip_000006"]
    assert sorted(path.stem for path in out.glob("*.json")) == frames
    assert greys == pytest.approx([10, 70, 130], abs=3)
    assert json.loads((out / "clip_000003.json").read_text())["made_of"]["frame"] == 3
    assert "3 of 3 photos written" in capsys.readouterr().out
    assert segment(tmp_path, "--video", str(video), "--film") == 0
    said = capsys.readouterr().out
    assert "3 of 8 already done" in said
    assert "5 of 5 photos written" in said
    assert greys[3:] == pytest.approx([30, 50, 90, 110, 150], abs=3)
    brightness: list[float] = []
    joined = cv2.VideoCapture(str(out / "clip_overlay.mp4"))
    assert joined.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    sizes = set()
    for _ in range(8):
        done, picture = joined.read()
        assert done
        sizes.add(picture.shape)
        # the photo's own grey shines through the colours
        shown = picture[: 24 * 16, : 32 * 16].astype(float)
        brightness.append(shown.mean())
    assert len(sizes) == 1
    assert brightness == sorted(brightness)
    assert not joined.read()[0]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_videos_that_are_none(tmp_path: Path, photos: Path, capsys: Said) -> None:
    (tmp_path / "text.avi").write_text("no video")
    whole = film(tmp_path / "whole.avi", 8).read_bytes()
    for name, message in [
        ("text.avi", "not a video that OpenCV reads"),
        ("lost.avi", "there is no such video"),
    ]:
        assert segment(tmp_path, "--video", str(tmp_path / name)) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 85 // 100])
    assert segment(tmp_path, "--video", str(tmp_path / "cut.avi")) in (0, 1)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "frames of the 8 that it tells of could be read" in said.err
    assert 0 < len(list((tmp_path / "out").glob("cut_*.json"))) < 8, "what can be read is labelled"
