"""The programs under datasets/, started as a user does, on miniature data sets."""

from __future__ import annotations

import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from miniature import MakeTree
from miniatures import BUILDERS

from twostage.data import catalog
from twostage.data.errors import DatasetError

Start = Callable[..., int]
DATASETS = Path(__file__).resolve().parents[3] / "datasets"
PROGRAMS = {
    "coco_stuff": ["prepare_coco_stuff.py"],
    "voc": ["prepare_voc.py"],
    "voc21": ["prepare_voc.py", "--classes", "21"],
    "pascal_context_59": ["prepare_pascal_context.py"],
    "pascal_context_459": ["prepare_pascal_context.py", "--classes", "459", "--annotations", "mat"],
    "ade20k_150": ["prepare_ade20k.py"],
    "ade20k_847": ["prepare_ade20k.py", "--classes", "847"],
    "cityscapes": ["prepare_cityscapes.py"],
}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """start(program, *options) -> exit status."""

    def run(program: str, *options: str) -> int:
        monkeypatch.syspath_prepend(str(DATASETS))
        monkeypatch.setattr(sys, "argv", [str(DATASETS / program), *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(DATASETS / program), run_name="__main__")
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize("name", BUILDERS)
def test_prepares_and_checks(
    make_tree: MakeTree, start: Start, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    tree = make_tree(name)
    program, *options = PROGRAMS[name]
    assert start(program, *options, "--root", str(tree.root), "--workers", "1") == 0
    printed = capsys.readouterr().out
    for split, photos in tree.splits.items():
        assert f"{split}: {photos} of {photos} label maps in" in printed
    assert all(path.is_file() for path in tree.expected)
    assert start(program, *options, "--root", str(tree.root), "--check-only") == 0
    assert "0 written now" in capsys.readouterr().out


@pytest.mark.parametrize("name", BUILDERS)
def test_the_command_that_readers_name_makes_what_they_lack(
    make_tree: MakeTree, start: Start, name: str
) -> None:
    tree = make_tree(name)
    for split, photos in tree.splits.items():
        with pytest.raises(DatasetError) as lacking:
            catalog.get(split, tree.root)
        program, *options = shlex.split(str(lacking.value).partition("then run: python datasets/")[2])
        assert start(program, *options) == 0
        assert len(catalog.get(split, tree.root)) == photos


def test_says_what_is_wrong_in_one_line(
    tmp_path: Path, start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert start("prepare_voc.py") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"prepare_voc.py: {tmp_path / 'VOC2012' / 'JPEGImages'}: there is no such folder")
    assert "Traceback" not in said


def test_a_key_stops_it_with_a_word(
    make_tree: MakeTree, start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make_tree("voc")

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twostage.data.prepare.run._prepare_split", interrupted)
    assert start("prepare_voc.py", "--root", str(tree.root)) == 130
    assert "goes on from there" in capsys.readouterr().err


def test_the_readme_names_every_program_and_archive() -> None:
    text = (DATASETS / "README.md").read_text()
    for program in sorted(path.name for path in DATASETS.glob("prepare_*.py")):
        assert f"python datasets/{program}" in text
    for archive in (
        "train2017.zip",
        "stuffthingmaps_trainval2017.zip",
        "VOCtrainval_11-May-2012.tar",
        "SegmentationClassAug.zip",
        "VOCtrainval_03-May-2010.tar",
        "trainval_merged.json",
        "trainval.tar.gz",
        "ADEChallengeData2016.zip",
        "ADE20K_2021_17_01.zip",
        "leftImg8bit_trainvaltest.zip",
        "gtFine_trainvaltest.zip",
    ):
        assert archive in text
