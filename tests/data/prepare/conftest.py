"""Miniature data sets, complete by a table of counts that is cut down to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from miniature import MakeTree, Miniature
from miniatures import BUILDERS

from twostage.data.benchmarks import BENCHMARKS


@pytest.fixture
def make_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeTree:
    """make_tree("coco_stuff"): a complete miniature of the data set."""

    def make(name: str) -> Miniature:
        tree = BUILDERS[name](tmp_path)
        for split, photos in tree.splits.items():
            monkeypatch.setitem(BENCHMARKS, split, replace(BENCHMARKS[split], photos=photos))
        return tree

    return make
