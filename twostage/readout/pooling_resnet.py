"""Regions of an image from one pass of a ModifiedResNet: its attention pool over parts of the last map.

Shapes: B images, N = h * w places, R regions of one image, C channels, E joint width, m heads of width d.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twostage.clip.towers import PositionMode, grid_of, interpolate_positions, native_size
from twostage.ops.pooling import attend_inside, mean_under
from twostage.readout import resnet


@dataclass(frozen=True)
class ResnetReader:
    """How a ModifiedResNet is read. positions: how the pool's table is brought to the grid; itself: whether
    a region's query also looks at itself, as the trained one does.
    """

    visual: Any
    positions: PositionMode = "bicubic"
    itself: bool = False

    def look(self, pixels: Tensor) -> ResnetPass:
        """(B, 3, H, W) normalised, in the tower's dtype -> one pass."""
        return ResnetPass(self, resnet.last_map(self.visual, pixels))


@dataclass(frozen=True)
class ResnetPass:
    """One pass of a ModifiedResNet. last: (B, C, h, w), what enters the attention pool."""

    reader: ResnetReader
    last: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.last.shape[-2], self.last.shape[-1]

    def image(self) -> Tensor:
        """The attention pool as it was trained, its position table brought to the grid."""
        everything = torch.ones(1, self.grid[0] * self.grid[1], device=self.last.device)
        rows = [self._pooled(index, everything, True) for index in range(len(self.last))]
        return torch.cat(rows)

    def places(self, index: int) -> Tensor:
        """Value and output projection of every place, without attention and positions (MaskCLIP)."""
        return resnet.place_features(self.reader.visual, self.last[index : index + 1])[0][0]

    def values(self, index: int, shares: Tensor) -> Tensor:
        """The mean of the places' vectors before they are brought to length one.

        The pool ends in two linear layers, v_proj and c_proj, so averaging before, between and after them is
        the same.
        """
        places = self.places(index)
        return mean_under(places, shares).to(places.dtype)

    def attention(self, index: int, shares: Tensor) -> Tensor:
        """The attention pool over the places of each region: its query is their mean."""
        return self._pooled(index, shares, self.reader.itself)

    def _pooled(self, index: int, shares: Tensor, itself: bool) -> Tensor:
        """(R, E)."""
        pool = self.reader.visual.attnpool
        rows = self.last[index].flatten(1).T
        positions = self._positions()
        query = mean_under(rows, shares).to(rows.dtype) + positions[0]
        rows = rows + positions[1:]
        q, k, v = (self._heads(one) for one in (pool.q_proj(query), pool.k_proj(rows), pool.v_proj(rows)))
        own = (self._heads(pool.k_proj(query)), self._heads(pool.v_proj(query))) if itself else None
        mixed: Tensor = pool.c_proj(attend_inside(q, k, v, shares, own).transpose(0, 1).flatten(1))
        return mixed

    def _heads(self, rows: Tensor) -> Tensor:
        """(R, C) -> (m, R, d)."""
        heads: Tensor = rows.unflatten(1, (self.reader.visual.attnpool.num_heads, -1)).transpose(0, 1)
        return heads

    def _positions(self) -> Tensor:
        visual = self.reader.visual
        table = visual.attnpool.positional_embedding
        native = grid_of(visual, native_size(visual))
        return interpolate_positions(table, native, self.grid, self.reader.positions).to(self.last.dtype)
