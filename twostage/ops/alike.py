"""Averages of tokens over places nearby in the grid, and over places that are alike.

Shapes: B images, h x w grid, N = h * w places, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def filled(tokens: Tensor, holes: Tensor, grid: tuple[int, int]) -> Tensor:
    """tokens: (B, N, D); holes: (B, N) bool -> (B, N, D): holes get the mean of their neighbours in the 3 x 3
    cell that are no holes themselves, and 0 where there is none; all others stay.
    """
    sound = (~holes).to(tokens.dtype)[:, None].unflatten(2, grid)
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    total = F.avg_pool2d(maps * sound, 3, stride=1, padding=1)  # both share the divisor 9, which drops out
    count = F.avg_pool2d(sound, 3, stride=1, padding=1)
    mean = torch.where(count > 0, total / count.clamp_min(1 / 9), 0).flatten(2).transpose(1, 2)
    return torch.where(holes[..., None], mean, tokens)


def cosines(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N) float32 cosines of all pairs of places."""
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def mean_of_alike(tokens: Tensor, likeness: Tensor, cut: float) -> Tensor:
    """tokens: (B, N, D); likeness: (B, N, N) cosines -> (B, N, D) in the tokens' dtype: every place the mean
    of all, weighted by their likeness where that is at least `cut`.

    The sum of a row's weights is 1e-6 larger in the division, as in SC-CLIP.
    """
    weight = torch.where(likeness < cut, 0.0, likeness)
    weight = weight / (weight.sum(dim=2, keepdim=True) + 1e-6)
    return weight.to(tokens.dtype) @ tokens
