"""A file is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twostage.data.atomic import replacing, sweep


def test_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x"
    with replacing(path) as stream:
        stream.write(b"old")
        assert not path.exists()
    with pytest.raises(TypeError), replacing(path) as stream:
        stream.write(b"half" + None)  # type: ignore[operator]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_sweeping_takes_what_the_dead_left_and_nothing_else(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    dead, alive = tmp_path / f".x.png.{gone}.part", tmp_path / f".x.png.{os.getpid()}.part"
    others = [tmp_path / name for name in ("x.png", ".hidden", f"x.{gone}.part", ".x.part")]
    for path in [dead, alive, *others]:
        path.write_bytes(b"half")
    assert sweep(tmp_path) == 0, "too young: another machine may be writing it"
    assert sweep(tmp_path, seconds=0) == 1
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others])
    assert sweep(tmp_path / "nowhere") == 0
