"""The check counts what is there and names everything that is wrong, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twostage.data.check import check_dataset
from twostage.data.errors import DatasetError

MakeFolder = Callable[..., Path]


def test_a_sound_folder(make_folder: MakeFolder) -> None:
    steps: list[tuple[int, int]] = []
    report = check_dataset(make_folder(), progress=lambda done, total: steps.append((done, total)))
    (split,) = report.splits
    assert report.ok
    assert split.problems == {}
    assert (split.num_images, split.num_counted) == (3, 3)
    assert split.pixels == (6 * 8 + 1, 3, 2)  # counted by hand from the fixture
    assert split.images == (2, 2, 1)
    assert split.ignored == 2
    assert steps == [(1, 3), (2, 3), (3, 3)]
    text = report.format()
    assert "3 images" in text
    assert "usable" in text
    assert json.loads(json.dumps(report.to_json()))["splits"][""]["classes"]["couch"] == {
        "pixels": 3,
        "images": 2,
    }


def test_splits_one_or_all(make_folder: MakeFolder) -> None:
    root = make_folder("train", "val")
    assert [split.name for split in check_dataset(root).splits] == ["train", "val"]
    assert [split.name for split in check_dataset(f"{root}@val").splits] == ["val"]
    assert [split.name for split in check_dataset(root, "train").splits] == ["train"]
    with pytest.raises(DatasetError, match="no split 'nope'"):
        check_dataset(f"folder:{root}@nope")


def damaged(root: Path) -> Path:
    """One mistake of each kind. a: wrong size; b: undeclared values; c: mask not readable; d..f as named."""
    Image.fromarray(np.full((8, 6), 3, dtype=np.uint8)).save(root / "masks" / "a.png")
    Image.fromarray(np.array([[9, 7, 9, 3]], dtype=np.uint8)).save(root / "masks" / "b.png")
    (root / "masks" / "c.png").write_bytes(b"junk")
    (root / "images" / "broken.jpg").write_bytes(b"")
    Image.fromarray(np.full((2, 2), 7, dtype=np.uint8)).save(root / "masks" / "broken.png")
    Image.new("RGB", (2, 2)).save(root / "images" / "lonely.png")
    Image.new("L", (2, 2)).save(root / "masks" / "orphan.png")
    Image.new("RGB", (4, 1)).save(root / "images" / "b.bmp")
    (root / "images" / "notes.txt").write_text("x")
    return root


def test_every_mistake_is_named(make_folder: MakeFolder) -> None:
    root = damaged(make_folder())
    report = check_dataset(root, workers=3)
    problems = report.splits[0].problems
    assert not report.ok
    assert len(problems["unreadable"]) == 2
    assert "broken.jpg" in problems["unreadable"][0]
    assert "masks/c.png" in problems["unreadable"][1]
    assert "images/a.png is 8 x 6" in problems["sizes differ"][0]
    assert problems["undeclared values"] == [f"{root}/masks/b.png: 9"]
    assert problems["image without mask"] == [f"{root}/images/lonely.png"]
    assert problems["mask without image"] == [f"{root}/masks/orphan.png"]
    assert problems["same stem twice"] == [f"{root}/images/b.bmp and {root}/images/b.png"]
    assert problems["file of another kind"] == [f"{root}/images/notes.txt"]
    assert report.splits[0].pixels == (48 + 1, 1 + 4, 0)
    text = report.format()
    assert "NOT usable" in text
    assert "1 of 3 classes never occur" in text
    for kind, findings in problems.items():
        assert f"{kind}: {len(findings)}" in text
        assert all(finding in text for finding in findings)
    assert report.to_json()["ok"] is False


def test_long_lists_are_cut_but_counted(make_folder: MakeFolder) -> None:
    root = make_folder()
    for number in range(12):
        Image.new("RGB", (2, 2)).save(root / "images" / f"lonely{number}.png")
    text = check_dataset(root).format(limit=3)
    assert "image without mask: 12" in text
    assert "... and 9 more" in text


def test_harmless_findings_do_not_condemn(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "masks" / "readme.txt").write_text("x")
    report = check_dataset(root)
    assert report.ok
    assert list(report.splits[0].problems) == ["file of another kind"]


def test_an_empty_split_and_an_unusable_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder("train")
    (root / "images" / "val").mkdir()
    report = check_dataset(root)
    assert not report.ok
    assert report.splits[1].problems == {"no images": ["images/val"]}
    with pytest.raises(DatasetError, match="no such folder"):
        check_dataset(tmp_path / "nowhere")
