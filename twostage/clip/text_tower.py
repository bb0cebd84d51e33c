"""The text tower with prompts cut to the longest of the chunk: the same features for about a tenth of the
time.

In a causal tower no token sees a later one, so what stands behind the end token never matters (CLIP, Radford
et al., 2021). Shapes: B prompts, L tokens, C context length, W width, D joint width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TextTower:
    """The text half of an open_clip model, read from its parameters; gradients pass through
    `encode_embeddings`."""

    def __init__(self, module: nn.Module) -> None:
        """module: the whole open_clip model, of either layout (text parts at its root, or under `text`)."""
        self.module = module
        self.tower: Any = getattr(module, "text", module)
        self.causal = _is_causal(module, self.tower)

    @property
    def context_length(self) -> int:
        """C: tokens a prompt may have, start and end included."""
        return int(self.tower.context_length)

    @property
    def width(self) -> int:
        """W: width of a token embedding (not of the joint space)."""
        return int(self.tower.token_embedding.weight.shape[1])

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 -> (B, L, W) token embeddings, without positions."""
        embedded: Tensor = self.tower.token_embedding(tokens)
        return embedded

    def encode_embeddings(self, embedded: Tensor, end: Tensor) -> Tensor:
        """embedded: (B, L, W), L <= C; end: (B,) int64 position of each end token -> (B, D), not normalised.

        Only for causal towers (`self.causal`).
        """
        tower = self.tower
        length = embedded.shape[1]
        x = embedded + tower.positional_embedding[:length].to(embedded.dtype)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        x = tower.ln_final(x)
        rows: Tensor = x[torch.arange(len(x), device=x.device), end]
        projection = tower.text_projection
        if projection is None:
            return rows
        projected: Tensor = projection(rows) if isinstance(projection, nn.Module) else rows @ projection
        return projected

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, C) int64 -> (B, D), not normalised; columns behind the last end token are left out where that
        is safe."""
        if not self.causal:
            full: Tensor = self.module.encode_text(tokens)  # type: ignore[operator]
            return full
        end = self.end_positions(tokens)
        tokens = tokens[:, : int(end.max()) + 1]
        return self.encode_embeddings(self.embed(tokens), end)

    def end_positions(self, tokens: Tensor) -> Tensor:
        """(B,) int64: where each prompt ends; the end token has the highest id unless the tower names
        another."""
        if _pool_type(self.module, self.tower) == "eos":
            end_id: int = getattr(self.tower, "text_eos_id", None) or self.tower.eos_id
            return torch.eq(tokens, end_id).int().argmax(dim=-1)
        return tokens.argmax(dim=-1)


def _pool_type(module: nn.Module, tower: Any) -> str:
    return str(getattr(module, "text_pool_type", None) or getattr(tower, "pool_type", ""))


def _is_causal(module: nn.Module, tower: Any) -> bool:
    """Whether cutting the prompt is proven safe: a strictly causal mask, no extra class token, pooled at the
    end token."""
    mask = getattr(tower, "attn_mask", None)
    parts = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
    if not isinstance(mask, Tensor) or not all(hasattr(tower, part) for part in parts):
        return False
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        return False
    expected = torch.full_like(mask, float("-inf")).triu_(1)
    return _pool_type(module, tower) in ("argmax", "eos") and torch.equal(mask, expected)
