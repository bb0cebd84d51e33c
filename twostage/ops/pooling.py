"""From many places to one vector a region: what share of the grid a mask holds, means under it, and attention
that stays inside it.

Shapes: R regions, N = h * w places of a grid, C channels, m heads of width d.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ops.masks import binarise, mean_on_grid


def region_shares(
    masks: Tensor, grid_hw: tuple[int, int], threshold: float | None = 0.5
) -> tuple[Tensor, Tensor]:
    """How much of every cell of a grid each mask holds.

    masks: (R, H, W) float in [0, 1] or bool; threshold: a soft mask holds the pixels strictly above it, None
    takes its values as they are. Returns (R, N) float32 in [0, 1], and (R,) bool, False where a mask holds
    nothing. A mask smaller than a cell holds a small share of it, never none.
    """
    held = masks if threshold is None else binarise(masks, threshold)
    shares = mean_on_grid(held, grid_hw).flatten(1)
    return shares, shares.amax(dim=1) > 0


def mean_under(rows: Tensor, shares: Tensor) -> Tensor:
    """sum_n shares[r, n] * rows[n] / sum_n shares[r, n].

    rows: (N, C); shares: (R, N) not negative -> (R, C) float32, zeros where a region holds nothing.
    """
    total = shares.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    mean: Tensor = (shares / total) @ rows.float()
    return mean


def attend_inside(
    q: Tensor, k: Tensor, v: Tensor, shares: Tensor, own: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Attention of one token a region to the places of its region, softmax over m_rn * exp(q k / sqrt(d)).

    q: (..., m, R, d); k, v: (..., m, N, d); shares: (R, N), or (..., 1, R, N), the soft mask m_rn, which
    multiplies the weight of a place (its logarithm is added to the logits, so places outside get none); own:
    keys and values (..., m, R, d) of the regions' tokens, if each is to look at itself too. Every region must
    hold something. -> (..., m, R, d).
    """
    bias = shares.to(torch.float32).log()  # -inf outside
    if own is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias.to(q.dtype)
    itself = (q * own[0]).sum(dim=-1, keepdim=True) * q.shape[-1] ** -0.5
    weights = torch.cat([itself, logits], dim=-1).float().softmax(dim=-1).to(v.dtype)
    return weights[..., :1] * own[1] + weights[..., 1:] @ v
