"""Preparation that is stopped, killed or finds what an accident left, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from miniature import MakeTree, Miniature
from PIL import Image

from twostage.data.errors import DatasetError
from twostage.data.prepare import run
from twostage.data.prepare.pixel_values import PixelValues
from twostage.data.prepare.plan import Item, Request

ROOT = Path(__file__).resolve().parents[3]


class StopsAtThird(PixelValues):
    """Interrupted at the third map, as by a key."""

    def labels(self, item: Item) -> np.ndarray:
        if item.stem.endswith("11"):
            raise KeyboardInterrupt
        return super().labels(item)


def files(tree: Miniature) -> list[str]:
    return sorted(path.name for path in (tree.root / "coco").glob("labels_171/**/*") if path.is_file())


def test_an_interruption_keeps_what_is_made_and_leaves_no_index(make_tree: MakeTree) -> None:
    tree = make_tree("coco_stuff")
    train, val = tree.plan(Request(tree.root))
    stopping = replace(train, converter=StopsAtThird(train.converter.published, 255))
    with pytest.raises(KeyboardInterrupt):
        run.prepare([stopping, val])
    assert files(tree) == ["000000000009.png", "000000000010.png"]
    reports = run.prepare([train, val])
    assert [report.tally.written for report in reports] == [2, 2]
    for path, labels in tree.expected.items():
        np.testing.assert_array_equal(np.array(Image.open(path)), labels)


def test_a_write_that_breaks_leaves_nothing_half_written(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree("voc")
    real_save = Image.Image.save

    def full_disk(image: Image.Image, stream: object, **options: object) -> None:
        stream.write(b"\x89PNG half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(DatasetError, match=r"2007_000032\.png: cannot be made .*No space left"):
        run.prepare(tree.plan(Request(tree.root)))
    assert not [path for path in (tree.root / "VOC2012/labels_20").rglob("*") if path.is_file()]
    monkeypatch.setattr(Image.Image, "save", real_save)
    run.prepare(tree.plan(Request(tree.root)))
    assert all(path.is_file() for path in tree.expected)


@pytest.mark.parametrize("damage", ["cut", "other size", "other values"])
def test_a_damaged_map_is_made_again(make_tree: MakeTree, damage: str) -> None:
    tree = make_tree("ade20k_150")
    run.prepare(tree.plan(Request(tree.root)))
    path, labels = sorted(tree.expected.items())[0]
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "other size":
        Image.new("L", (3, 3)).save(path)
    else:
        Image.fromarray(np.full(labels.shape, 150, dtype=np.uint8)).save(path)
    reports = run.prepare(tree.plan(Request(tree.root)))
    assert [report.tally.written for report in reports] == [1, 0]
    np.testing.assert_array_equal(np.array(Image.open(path)), labels)


def test_a_photo_that_is_gone_is_prepared_again(make_tree: MakeTree) -> None:
    tree = make_tree("ade20k_847")
    run.prepare(tree.plan(Request(tree.root)))
    photos = sorted(tree.root.glob("ADE20K_2021_17_01/images_847/*/*.jpg"))
    before = photos[0].read_bytes()
    photos[0].unlink()
    reports = run.prepare(tree.plan(Request(tree.root)))
    assert [report.tally.written for report in reports] == [1, 0]
    assert photos[0].read_bytes() == before


def test_what_a_killed_run_left_unfinished_is_swept_away(make_tree: MakeTree) -> None:
    tree = make_tree("voc")
    folder = tree.root / "VOC2012/labels_20/val"
    folder.mkdir(parents=True)
    old, fresh = folder / ".a.png.1.part", folder / ".b.png.2.part"
    old.write_bytes(b"half")
    fresh.write_bytes(b"another run's")
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    run.prepare(tree.plan(Request(tree.root)))
    assert not old.exists()
    assert fresh.exists()


def test_while_maps_are_missing_there_is_no_index(make_tree: MakeTree) -> None:
    tree = make_tree("coco_stuff")
    run.prepare(tree.plan(Request(tree.root)))
    (tree.root / "coco/labels_171/val2017/000000000009.png").unlink()
    tree.sources[-2].write_bytes(b"no PNG")
    with pytest.raises(DatasetError, match="not an image"):
        run.prepare(tree.plan(Request(tree.root)))
    assert not (tree.root / "coco/labels_171/val2017.json").exists()
    assert (tree.root / "coco/labels_171/train2017.json").exists()


def test_a_process_that_dies_is_said(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make_tree("voc")

    def dies(*args: object, **options: object) -> None:
        raise BrokenProcessPool("killed")

    monkeypatch.setattr(run.ProcessPoolExecutor, "map", dies)
    monkeypatch.setattr(run, "_CHUNK", 1)
    with pytest.raises(DatasetError, match=r"A process ended before .* fewer --workers"):
        run.prepare(tree.plan(Request(tree.root)), workers=2)


def test_killed_for_good_it_goes_on(tmp_path: Path) -> None:
    """A real SIGKILL: what is there afterwards is whole, and the same command ends well."""
    labels, photos = tmp_path / "cityscapes/gtFine/val/a", tmp_path / "cityscapes/leftImg8bit/val/a"
    labels.mkdir(parents=True)
    photos.mkdir(parents=True)
    raw = np.random.default_rng(0).choice(np.array([7, 11, 33], dtype=np.uint8), size=(300, 400))
    for number in range(60):
        Image.fromarray(raw).save(labels / f"a_{number:03d}_gtFine_labelIds.png")
        Image.new("RGB", (400, 300)).save(photos / f"a_{number:03d}_leftImg8bit.png")
    program = [sys.executable, "datasets/prepare_cityscapes.py", "--root", str(tmp_path), "--split", "val"]
    program += ["--allow-partial", "--workers", "1"]
    out = tmp_path / "cityscapes/labels_19/val"
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while first.poll() is None and len(list(out.glob("*.png"))) < 5:
            time.sleep(0.002)
        first.send_signal(signal.SIGKILL)
    made = [path for path in out.glob("*.png") if not path.name.startswith(".")]
    assert 5 <= len(made) <= 60
    for path in made:
        assert np.array(Image.open(path)).shape == (300, 400)
    assert len(made) == 60 or not out.with_name("val.json").exists()
    before = {path: path.stat().st_mtime_ns for path in made}
    ran = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert f"60 of 500 label maps in {out} ({60 - len(made)} written now)" in ran.stdout.replace("\n", " ")
    assert {path: path.stat().st_mtime_ns for path in made} == before
