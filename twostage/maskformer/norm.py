"""Group normalisation (Wu and He, 2018) that also takes maps of a single place."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's layer without its refusal of one 1x1 map, where an image of at most 32 pixels a side ends.

    The numbers of a group are then its channels, which is why a group should have several.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(channels: int) -> GroupNorm:
    """At most 32 groups of at least 8 channels; 256 channels make the paper's 32 groups."""
    return GroupNorm(math.gcd(32, max(1, channels // 8)), channels)
