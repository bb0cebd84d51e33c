"""What is read off a query: a mask, and an embedding to be compared with words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from twostage.types import TextBank


class Perceptron(nn.Module):
    """Linear layers of the given widths with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


def mask_logits(embeds: Tensor, mask_features: Tensor) -> Tensor:
    """(L, B, Q, C) mask embeddings and (B, C, h, w) features -> (L, B, Q, h, w): their products."""
    return torch.einsum("lbqc,bchw->lbqhw", embeds, mask_features)


def pool_under_masks(logits: Tensor, features: Tensor) -> Tensor:
    """Mean of features under soft masks: (L, B, Q, h, w) logits, (B, C, h', w') -> (L, B, Q, C).

    Masks finer than the features are averaged to their size. They are held constant, so that the class loss
    cannot bend them.
    """
    weights = logits.detach().sigmoid().flatten(0, 1)
    if weights.shape[-2:] != features.shape[-2:]:
        weights = functional.adaptive_avg_pool2d(weights, (features.shape[-2], features.shape[-1]))
    weights = weights.view(*logits.shape[:3], -1)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.einsum("lbqn,bcn->lbqc", weights, features.flatten(2))


class TextClassHead(nn.Module):
    """Two-layer perceptron into the joint space, and the learned vector that stands for "no object".

    With pooled_dim, the mean mask features under a query's mask are projected and added to its input.
    """

    def __init__(
        self, dim: int, hidden_dim: int, embedding_dim: int, no_object_std: float, pooled_dim: int | None
    ) -> None:
        super().__init__()
        self.perceptron = Perceptron((dim, hidden_dim, embedding_dim))
        self.no_object = nn.Parameter(torch.randn(1, embedding_dim) * no_object_std)
        self.pooled = None if pooled_dim is None else nn.Linear(pooled_dim, dim)

    def forward(self, queries: Tensor, pooled: Tensor | None) -> Tensor:
        """(..., d) queries, (..., pooled_dim) or None -> (..., D), not normalised."""
        if self.pooled is not None:
            queries = queries + self.pooled(pooled)
        return self.perceptron(queries)  # type: ignore[no-any-return]

    def logits(self, embeddings: Tensor, text: TextBank, scale: float) -> Tensor:
        """scale x cosine with each class, and with "no object" last: (..., D) -> (..., K + 1) float32."""
        # Half precision would leave steps of half a unit in these logits.
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = functional.normalize(embeddings.float(), dim=-1)
            none = scale * (unit @ functional.normalize(self.no_object.float(), dim=-1).T)
            return torch.cat([cosine_logits(unit, text, scale), none], dim=-1)


class LinearClassHead(nn.Module):
    """The closed-vocabulary head of a supervised MaskFormer: the embedding is the query itself."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, num_classes + 1)

    def forward(self, queries: Tensor, pooled: Tensor | None) -> Tensor:
        """The queries as they are; there is nothing to pool."""
        return queries

    def logits(self, embeddings: Tensor) -> Tensor:
        """(..., d) -> (..., K + 1), "no object" last."""
        return self.linear(embeddings).float()  # type: ignore[no-any-return]


def cosine_logits(unit: Tensor, text: TextBank, scale: float) -> Tensor:
    """scale x cosine, (..., D) float32 rows of length one -> (..., K); the bank's scale does not count."""
    return text.logits(unit) * (scale / text.logit_scale)


def pixel_cosines(embeddings: Tensor, text: TextBank, scale: float) -> Tensor:
    """scale x cosine of pixels with classes: (B, D, h, w), not normalised -> (B, K, h, w) float32."""
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings.float().movedim(1, -1)
        # Dividing K products by the length is cheaper than dividing D components first.
        length = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        logits: Tensor = cosine_logits(rows, text, scale) / length
        return logits.movedim(-1, 1)
