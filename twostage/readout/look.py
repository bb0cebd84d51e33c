"""A look at photos: the tower, the pixels, the text, and the plainest thing to do with them.

A method is a function from a look to logits (B, T, h', w') of the text's T rows, at the resolution it has.
Most presets read once and compare with the text; some look twice, or refine what they found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from twostage.readout.engine import Reading, Tower, read, read_from
from twostage.readout.knobs import Knobs
from twostage.readout.record import Wanted

Guest = Callable[[Tensor], Tensor]
"""A second vision model: (B, 3, H, W) RGB in [0, 1] -> (B, C, h, w) features, or (B, heads, C, h, w)."""


@dataclass(frozen=True)
class Look:
    """What a method is given. tower, knobs: what to read, and how, with the tower's own block numbers;
    pixels: (B, 3, H, W) normalised, in the tower's dtype, H and W multiples of a patch; text: (T, E) float32
    unit rows; scale: what cosines are multiplied by; settings: the preset's; mean, std: of the normalisation;
    guest: a second model; regions: (N, H, W) masks of each image; class_of: (T,) int64, the class of a row of
    text (synonyms share one), None where every row is a class.
    """

    tower: Tower
    knobs: Knobs
    pixels: Tensor
    text: Tensor
    scale: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    guest: Guest | None = None
    regions: list[Tensor] | None = None
    class_of: Tensor | None = None

    def read(
        self, given: Mapping[str, Tensor] | None = None, also: Wanted | None = None, **knobs: Any
    ) -> Reading:
        """One reading with these knobs, some of them changed."""
        return read(self.tower, self.pixels, replace(self.knobs, **knobs), given, also)

    def read_again(self, before: Reading, given: Mapping[str, Tensor] | None = None, **knobs: Any) -> Reading:
        """The last block once more, on what the early blocks left behind for a reading before; knobs may ask
        no more of them.
        """
        return read_from(self.tower, before.record, before.grid, replace(self.knobs, **knobs), given)

    def cosines(self, reading: Reading) -> Tensor:
        """(B, N, T) float32 of a reading's patches with the text."""
        return reading.unit @ self.text.T

    @property
    def rgb(self) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1], the pixels before normalisation."""
        mean, std = (self.pixels.new_tensor(one).float().reshape(1, 3, 1, 1) for one in (self.mean, self.std))
        return (self.pixels.float() * std + mean).clamp(0, 1)


def on_grid(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, T) -> (B, T, h, w)."""
    maps: Tensor = rows.transpose(1, 2).unflatten(2, grid)
    return maps


def single(look: Look) -> Tensor:
    """One reading, compared with the text."""
    reading = look.read()
    return on_grid(look.cosines(reading) * look.scale, reading.grid)


Method = Callable[[Look], Tensor]
"""A look -> (B, T, h', w') logits."""


@torch.no_grad()
def logits(method: Method, look: Look) -> Tensor:
    """(B, T, h', w') float32 of one method."""
    return method(look).float()
