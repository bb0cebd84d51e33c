"""Graphs of patches by their spectra: eigenvalues, distances between them, matching, low-rank maps.

CASS ("Distilling Spectral Knowledge of Vision Foundation Models", Kim et al., 2025).

Shapes: ... leading axes, N nodes, C channels, r = min(N, C), m and n numbers of graphs.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

TIE = 1e-6
"""What being out of order costs in a matching: more than rounding, less than any difference that counts."""


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N, C) float32 X -> eigenvalues (..., r) and eigenvectors (..., N, r) of the graph X X^T / N,
    largest first.

    With unit rows the eigenvalues sum to one. They are taken on the smaller side of X.
    """
    nodes, channels = rows.shape[-2:]
    if nodes <= channels:
        values, vectors = torch.linalg.eigh(rows @ rows.transpose(-2, -1) / nodes)
    else:
        values, turned = torch.linalg.eigh(rows.transpose(-2, -1) @ rows / nodes)
        vectors = rows @ turned
        vectors = vectors / vectors.norm(dim=-2, keepdim=True).clamp_min(1e-12)
    return values.clamp_min(0).flip(-1), vectors.flip(-1)


def spectral_distance(first: Tensor, second: Tensor, count: int) -> Tensor:
    """(..., m, r) and (..., n, r') eigenvalues, largest first -> (..., m, n) Wasserstein distances between
    the `count` largest of each; graphs of lower rank have zeros for the rest.
    """
    one, other = (_first(values, count) for values in (first, second))
    return (one[..., :, None, :] - other[..., None, :, :]).abs().mean(dim=-1)


def _first(values: Tensor, count: int) -> Tensor:
    missing = max(0, count - values.shape[-1])
    return torch.nn.functional.pad(values[..., :count], (0, missing))


def matched(cost: Tensor) -> Tensor:
    """(m, n) cost of pairs -> (m,) int64, everyone's partner in the cheapest assignment (Hungarian).

    Where there are fewer partners than m, each may be given out ceil(m / n) times. Of assignments that cost
    the same, as they do where all spectra of one side lie above the other's, the one nearest to the given
    order is taken, so that rounding decides nothing.
    """
    many, partners = cost.shape
    tiled = cost.repeat(1, math.ceil(many / partners)).double().cpu()
    first, second = (torch.arange(size, dtype=torch.float64) for size in tiled.shape)
    _, chosen = linear_sum_assignment((tiled + TIE * (first[:, None] - second) ** 2).numpy())
    return torch.as_tensor(chosen, device=cost.device) % partners


def low_rank_map(values: Tensor, vectors: Tensor, energy: float) -> Tensor:
    """(..., r) eigenvalues and (..., N, r) eigenvectors -> (..., N, N), rows that sum to one.

    The largest eigenvalues that together hold `energy` of the sum are kept, and each is scaled by its ratio
    to the largest, so that the coarse structure counts more; what is negative is dropped. A row without
    anything left looks at itself.
    """
    before = values.cumsum(dim=-1) - values
    kept = before < energy * values.sum(dim=-1, keepdim=True)
    scaled = torch.where(kept, values**2 / values[..., :1].clamp_min(1e-12), 0.0)
    found = ((vectors * scaled[..., None, :]) @ vectors.transpose(-2, -1)).clamp_min(0)
    total = found.sum(dim=-1, keepdim=True)
    itself = torch.eye(found.shape[-1], device=found.device)
    return torch.where(total > 0, found / total.clamp_min(1e-30), itself)
