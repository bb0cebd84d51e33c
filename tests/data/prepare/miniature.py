"""Miniature copies of the benchmark data sets, in the folders and file formats of the published archives.

With each come the label maps that have to come out, by plain dictionaries and loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from twostage.data.prepare.plan import Request, Split

Plan = Callable[[Request], list[Split]]


@dataclass
class Miniature:
    """A tree below `root`. splits: catalog name -> photos; expected: path of each label map -> its values."""

    root: Path
    plan: Plan
    splits: dict[str, int]
    void: int = 255
    expected: dict[Path, np.ndarray] = field(default_factory=dict)
    sources: list[Path] = field(default_factory=list)


MakeTree = Callable[[str], Miniature]


def slowly(raw: np.ndarray, mapping: dict[int, int], void: int) -> np.ndarray:
    """Pixel by pixel."""
    out = np.empty(raw.shape, dtype=np.int64)
    for row in range(raw.shape[0]):
        for column in range(raw.shape[1]):
            out[row, column] = mapping.get(int(raw[row, column]), void)
    return out


def draw(values: list[int], seed: int, shape: tuple[int, int] = (5, 7)) -> np.ndarray:
    """Random values of the list."""
    return np.random.default_rng(seed).choice(np.array(values), size=shape)


def save(path: Path, array: np.ndarray, kind: str = "L") -> None:
    """An 8-bit PNG, grey or (kind P) with a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array.astype(np.uint8))
    if kind == "P":
        image.putpalette([value % 256 for value in range(768)])
    image.save(path)


def photo(path: Path, shape: tuple[int, int]) -> None:
    """A photo of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def add(tree: Miniature, source: str, raw: np.ndarray, mapping: dict[int, int], target: str) -> None:
    """One annotation as a grey PNG, and what has to become of it."""
    save(tree.root / source, raw)
    tree.sources.append(tree.root / source)
    tree.expected[tree.root / f"{target}.png"] = slowly(raw, mapping, tree.void)
