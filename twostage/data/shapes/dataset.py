"""The embedded world as a data set: scene i of a split is a pure function of (world seed, split, i)."""

from __future__ import annotations

import numpy as np
import torch

from twostage.data.sample import Sample
from twostage.data.shapes.classes import vocabulary
from twostage.data.shapes.scene import Scene, render
from twostage.errors import TwostageError

SPLITS: dict[str, tuple[int, int]] = {"train": (1, 100_000), "val": (2, 200), "test": (3, 500)}
"""Split -> its number in the seed, and its length. Any scene of any split is drawn in a few milliseconds."""


class ShapesDataset:
    """Scenes drawn on demand.

    split: "train", "val" or "test"; seed: another seed is another world of scenes; length: how many scenes,
    None takes the split's own.
    """

    def __init__(self, split: str, seed: int = 0, length: int | None = None) -> None:
        if split not in SPLITS:
            raise TwostageError(f"shapes: unknown split {split!r}; there are {', '.join(SPLITS)}.")
        self.vocabulary = vocabulary()
        self.name = f"shapes_{split}" if seed == 0 else f"shapes_{split}@{seed}"
        self._number, default = SPLITS[split]
        self._split, self._seed = split, seed
        self._length = default if length is None else length

    def __len__(self) -> int:
        return self._length

    def scene(self, index: int) -> Scene:
        """Scene `index` with its instances and caption."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has {self._length} scenes, there is no number {index}.")
        return render(np.random.default_rng([self._seed, self._number, index]))

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        image = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()
        return Sample(image, torch.from_numpy(scene.labels), f"{self._split}_{index:06d}")


def build(split: str, seed: int = 0) -> ShapesDataset:
    """What the catalog calls for shapes_train, shapes_val and shapes_test."""
    return ShapesDataset(split, seed)
