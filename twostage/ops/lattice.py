"""Gaussian filtering of values at scattered points in a space of a few dimensions, such as place and colour.

The permutohedral lattice of Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral
Lattice", Eurographics 2010: values are spread over the corners of the simplices that hold the points, blurred
from corner to corner along the d + 1 axes of the lattice, and read back. Theirs is a hash table in C++; here
the corners are found by sorting, and every step is one tensor operation that gives the same bits each time.

Shapes: P points, d dimensions, V lattice corners in use, C values a point.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError


class Lattice:
    """The lattice around fixed points; build once, filter many times.

    features: (P, d) float32, P > 0, in units of the Gaussian's standard deviation in each dimension.
    Memory: about 40 (d + 1) bytes a point while it is built, 20 (d + 1) afterwards.

    Raises:
        TwostageError: the points are spread so far that the lattice cannot be numbered in 62 bits.
    """

    def __init__(self, features: Tensor) -> None:
        dims = features.shape[1]
        rounded, rank, self._weights = _simplices(features.float())
        packed, steps = _pack(rounded, rank)
        corners, flat = torch.unique(packed.flatten(), return_inverse=True)  # sorted
        self._corner_of = flat.view(-1, dims + 1)
        order = torch.argsort(flat, stable=True)
        self._points = torch.div(order, dims + 1, rounding_mode="floor")
        self._point_weights = self._weights.flatten()[order]
        counts = torch.bincount(flat, minlength=len(corners))
        self._begins = F.pad(counts.cumsum(0), (1, 0))
        self._neighbours = [_find(corners, step) for step in steps]

    @property
    def num_corners(self) -> int:
        """V, how many corners of the lattice are in use."""
        return len(self._begins) - 1

    def filter(self, values: Tensor) -> Tensor:
        """values: (P, C) float32 -> (P, C): sums over all points, each weighted by (about) a constant times
        exp(-|f_i - f_j|^2 / 2); the constant is the same for all.
        """
        corners = F.embedding_bag(
            self._points,
            values,
            self._begins,
            mode="sum",
            per_sample_weights=self._point_weights,
            include_last_offset=True,
        )
        blurred = self._blur(corners, self._neighbours) + self._blur(corners, self._neighbours[::-1])
        return F.embedding_bag(self._corner_of, blurred, mode="sum", per_sample_weights=self._weights)

    @staticmethod
    def _blur(corners: Tensor, neighbours: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(V, C) blurred along one axis after the other. Corners that no point needs are missing, so the
        order matters a little; both orders together make the filter symmetric and closer to the Gaussian.
        """
        empty = corners.new_zeros(1, corners.shape[1])
        for before, after in neighbours:
            around = torch.cat([corners, empty])
            corners = corners + 0.5 * (around[before] + around[after])
        return corners


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each point the nearest corner of remainder 0, (P, d + 1) int64, the rank of each coordinate's
    distance to it, (P, d + 1) int64, largest first, and the barycentric weights of the d + 1 corners of its
    simplex by their remainder, (P, d + 1) float32.
    """
    dims = features.shape[1]
    elevated = features @ _basis(dims).to(features)
    whole = torch.round(elevated / (dims + 1)).long()
    offset = elevated - (whole * (dims + 1)).float()
    rank = offset.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    rank += whole.sum(dim=1, keepdim=True)  # rounding may have left the plane on which coordinates sum to 0
    shift = (rank < 0).long() - (rank > dims).long()
    rank += shift * (dims + 1)
    whole += shift
    offset -= (shift * (dims + 1)).float()
    by_rank = torch.empty_like(offset).scatter_(1, rank, offset).flip(1) / (dims + 1)
    weights = torch.cat([by_rank[:, :1] - by_rank[:, -1:] + 1, by_rank[:, 1:] - by_rank[:, :-1]], dim=1)
    return whole * (dims + 1), rank, weights


def _basis(dims: int) -> Tensor:
    """(d, d + 1) float32: the axes of feature space in the plane of the lattice, orthogonal, so long that the
    blur of [1/2, 1, 1/2] along all axes together has a standard deviation of one (Adams et al., section 3.1).
    """
    axes = torch.zeros(dims, dims + 1, dtype=torch.float64)
    for axis in range(dims):
        axes[axis, : axis + 1] = 1
        axes[axis, axis + 1] = -(axis + 1)
        axes[axis] *= (dims + 1) * math.sqrt(2 / 3) / math.sqrt((axis + 1) * (axis + 2))
    return axes.float()


def _pack(rounded: Tensor, rank: Tensor) -> tuple[Tensor, list[int]]:
    """One number a corner, (P, d + 1) int64, and what has to be added for the next corner along each of the
    d + 1 axes. The last coordinate follows from the others; a margin keeps neighbours from running into each
    other.
    """
    dims = rounded.shape[1] - 1
    low = rounded[:, :dims].amin(dim=0) - 2 * (dims + 1)
    span = (rounded[:, :dims].amax(dim=0) + 2 * (dims + 1) - low + 1).tolist()
    if math.prod(span) >= 2**62:
        raise TwostageError(
            f"Lattice: the points spread over {' x '.join(str(width) for width in span)} steps, more than "
            "can be numbered; use larger standard deviations."
        )
    strides = [math.prod(span[:axis]) for axis in range(dims)]
    place = torch.tensor(strides, device=rounded.device)
    home = ((rounded[:, :dims] - low) * place).sum(dim=1)
    packed = torch.empty_like(rounded)
    for remainder in range(dims + 1):
        wraps = rank[:, :dims] > dims - remainder
        packed[:, remainder] = home + remainder * sum(strides) - (dims + 1) * (wraps * place).sum(dim=1)
    steps = [sum(strides) - (dims + 1) * strides[axis] for axis in range(dims)]
    return packed, [*steps, sum(strides)]


def _find(corners: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Rows of the corners one step before and after each, (V,) int64; V where there is none in use."""
    found = []
    for target in (corners - step, corners + step):
        row = torch.searchsorted(corners, target).clamp_(max=len(corners) - 1)
        found.append(torch.where(corners[row] == target, row, len(corners)))
    return found[0], found[1]
