"""The transformer decoder: queries look at each other, then at the image (Carion et al., DETR, 2020).

Shapes: B images, Q queries, S places of a memory, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Memory:
    """What queries look at: content (B, S, d), its positions (S, d)."""

    content: Tensor
    positions: Tensor


class Attention(nn.Module):
    """Multi-head attention; its input projections lie in one matrix, in the order query, key, value."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query: (B, Q, d); key, value: (B, S, d); allowed: (B, Q, S) bool, True where a query may look."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None
        if allowed is not None:
            # Finite, not -inf: before PyTorch 2.5 a block of 512 keys without an open one gave NaN on CPUs.
            closed = torch.finfo(q.dtype).min / 2
            mask = torch.zeros(allowed.shape, dtype=q.dtype, device=q.device).masked_fill_(~allowed, closed)
            mask = mask[:, None]
        rate = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward; each added to its input, then normalised."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.cross_attn = Attention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward_dim), nn.Linear(feedforward_dim, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, query_positions: Tensor, memory: Memory, allowed: Tensor | None) -> Tensor:
        """x: (B, Q, d) -> (B, Q, d). Positions are added to queries and keys, never to values."""
        here = x + query_positions
        x = self.norm1(x + self.dropout(self.self_attn(here, here, x)))
        looked = self.cross_attn(
            x + query_positions, memory.content + memory.positions, memory.content, allowed
        )
        x = self.norm2(x + self.dropout(looked))
        inner = self.dropout(functional.relu(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(inner)))  # type: ignore[no-any-return]


class QueryDecoder(nn.Module):
    """A stack of decoder layers; one shared normalisation makes every layer's output ready for the heads."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, feedforward_dim, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        query_positions: Tensor,
        memories: Sequence[Memory],
        mask_at: Callable[[Tensor, int], Tensor] | None = None,
    ) -> Tensor:
        """Queries start at zero, (Q, d) learned positions tell them apart.

        memories: layer i looks at memories[i modulo their number]. mask_at(queries (B, Q, d), m) gives
        mask logits (B, Q, S) at the places of memory m; where it is given, a layer looks only at places whose
        logit by the layer before is positive, or everywhere if there is none. The first looks everywhere.

        Returns (layers, B, Q, d), normalised.
        """
        batch = len(memories[0].content)
        x = memories[0].content.new_zeros(batch, *query_positions.shape)
        outputs: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            place = index % len(memories)
            allowed = None
            if mask_at is not None and outputs:
                allowed = open_where_positive(mask_at(outputs[-1], place))
            x = layer(x, query_positions, memories[place], allowed)
            outputs.append(self.norm(x))
        return torch.stack(outputs)


def open_where_positive(logits: Tensor) -> Tensor:
    """(..., S) mask logits -> bool: True where sigmoid > 0.5, or in all of a row that has no such place."""
    inside = logits > 0
    return inside | ~inside.any(dim=-1, keepdim=True)
