"""A file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from twostage.data.atomic import replacing


def test_replaces_only_when_the_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x"
    with replacing(path) as stream:
        stream.write(b"old")
        assert not path.exists()
    with pytest.raises(TypeError), replacing(path) as stream:
        stream.write(b"half" + None)  # type: ignore[operator]
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]
