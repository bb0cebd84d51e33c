"""A folder data set of three small photos that the tests may damage as they like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]
CLASSES: dict[str, Any] = {
    "ignore": 0,
    "classes": [
        {"id": 3, "name": "sky", "seen": True},
        {"id": 7, "name": ["couch", "sofa"], "seen": False},
        {"id": 300, "name": "tree|bush", "seen": True},
    ],
}


def write_pair(root: Path, place: str, stem: str, mask: np.ndarray, value: int = 90) -> None:
    """An even grey photo and its mask, under images/PLACE and masks/PLACE."""
    for kind in ("images", "masks"):
        (root / kind / place).mkdir(parents=True, exist_ok=True)
    height, width = mask.shape
    Image.new("RGB", (width, height), (value, value, value)).save(root / "images" / place / f"{stem}.png")
    Image.fromarray(mask).save(root / "masks" / place / f"{stem}.png")


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """make_folder(*splits): three pairs in each split; without splits a flat folder."""

    def make(*splits: str) -> Path:
        root = tmp_path / "mine"
        for split in splits or ("",):
            write_pair(root, split, "a", np.full((6, 8), 3, dtype=np.uint8), 10)
            write_pair(root, split, "b", np.array([[0, 7, 7, 3]], dtype=np.uint8), 20)
            write_pair(root, split, "c", np.array([[300, 0], [7, 300]], dtype=np.uint16), 30)
        (root / "classes.json").write_text(json.dumps(CLASSES))
        return root

    return make
