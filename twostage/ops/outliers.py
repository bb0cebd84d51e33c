"""Places of an image whose token stands out from the others, by distance or by attention.

Shapes: B images, N places, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twostage.errors import TwostageError

_TINY = 1e-12
"""Keeps the inverse of a distance finite where tokens are equal."""


def squared_distances(points: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N) float32 squared L2 distances.

    By products, so that no (N, N, D) tensor is made; the mean is taken off before, because what all points
    share (a few channels of CLIP are large everywhere) would otherwise drown the differences in rounding.
    """
    rest = points.float()
    rest = rest - rest.mean(dim=1, keepdim=True)
    square = rest.square().sum(dim=2)
    found = square[:, :, None] + square[:, None, :] - 2 * (rest @ rest.transpose(1, 2))
    return found.clamp_min(0)


def local_outlier_factor(points: Tensor, neighbours: int = 30) -> Tensor:
    """(B, N, D) -> (B, N) float32: how much further off a point's neighbours are than their own neighbours.

    d_k(i) * mean over the k nearest j of 1 / d_k(j), where d_k is the squared distance to the k-th nearest
    other point. This is SC-CLIP's variant of the local outlier factor (Breunig et al., 2000), whose reach
    distance is the point's own. Where that leaves no point out (k others or fewer), half of the others are
    neighbours: with all of them, the two points furthest apart would always tie. A point alone gets 1.

    Raises:
        TwostageError: no neighbour is asked for.
    """
    if neighbours < 1:
        raise TwostageError(
            f"Local outlier factor: expected at least one neighbour, got {neighbours}; SC-CLIP takes 30."
        )
    count = points.shape[1]
    if count == 1:
        return torch.ones(points.shape[:2], device=points.device)
    k = neighbours if count - 1 > neighbours else max(1, (count - 1) // 2)
    distances = squared_distances(points)
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    near, index = distances.topk(k, dim=2, largest=False)
    reach = near[:, :, -1].clamp_min(_TINY)
    density = reach.reciprocal()[:, None, :].expand(-1, count, -1).gather(2, index)
    return reach * density.mean(dim=2)


def highest(scores: Tensor, share: float) -> Tensor:
    """(B, N) scores -> (B, N) bool: those above the quantile that leaves `share` of an image's places."""
    return scores > scores.float().quantile(1 - share, dim=1, keepdim=True)


def class_over_self(from_class: Tensor, from_self: Tensor, factor: float, most: int) -> Tensor:
    """from_class, from_self: (B, N), how much the class token looks at each place, and the place at itself ->
    (B, N) bool: factor * from_class > from_self, and of these the `most` that the class token looks at most
    (SFP, Jin et al., 2025).
    """
    over = factor * from_class > from_self
    looked_at = from_class.float().masked_fill(~over, -torch.inf)
    index = looked_at.topk(min(most, looked_at.shape[1]), dim=1).indices
    return torch.zeros_like(over).scatter_(1, index, True) & over
