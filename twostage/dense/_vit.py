"""A CLIP VisionTransformer computed from its parameters, block by block, with the attention of one's choice.

Nothing is patched or hooked: the layers' weights are read and the arithmetic is done here, so the model stays
as it is and other models may share it at the same time.

Shapes: B images, h x w patch grid, N = h * w, L = N + 1 tokens (row 0 is the class token), D width, m heads
of width d, E joint width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.clip.towers import PositionMode, interpolate_positions, is_vit
from twostage.errors import TwostageError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v: (B, m, L, d) each -> (B, m, L, d), the mixed values of every token."""


class DenseTowerError(TwostageError):
    """An image tower has no place per patch that could be compared with text."""


def require_vit(visual: nn.Module) -> None:
    """Refuse towers whose patch tokens do not live in the joint space, or whose blocks hold more than is
    computed here.

    Raises:
        DenseTowerError: with the part that is in the way.
    """
    reason = _obstacle(visual)
    if reason is not None:
        raise DenseTowerError(
            f"{type(visual).__name__} has no dense readout: {reason}."
            " Use a plain CLIP VisionTransformer with class token (ViT-B-16, ...)"
            " or a ModifiedResNet (RN50, ...)."
        )


def _obstacle(visual: Any) -> str | None:
    if not is_vit(visual) or not hasattr(visual, "transformer"):
        return "it is not open_clip's VisionTransformer"
    if getattr(visual, "attn_pool", None) is not None:
        return "it pools by attention, so no projection of single patches exists"
    if getattr(visual, "pool_type", "tok") != "tok":
        return f"it pools by {visual.pool_type!r}, not by the class token"
    if getattr(visual, "final_ln_after_pool", False):
        return "its last norm comes after pooling"
    for block in visual.transformer.resblocks:
        attention = block.attn
        if getattr(attention, "in_proj_weight", None) is None:
            return "its attention has no joint input projection"
        extras = [(attention, name) for name in ("ln_q", "ln_k", "ln_inner", "head_scale", "logit_scale")]
        extras += [(block, "ln_attn"), (block.mlp, "ln"), (block, "ln_1_kv")]
        for owner, name in extras:
            if not isinstance(getattr(owner, name, None), (nn.Identity, type(None))):
                return f"its blocks have an extra part {name!r}"
    return None


def embed(visual: Any, pixels: Tensor, mode: PositionMode = "bicubic") -> tuple[Tensor, tuple[int, int]]:
    """pixels: (B, 3, H, W) normalised -> tokens (B, L, D) as they enter block 0, and the grid (h, w)."""
    patches = visual.conv1(pixels)
    grid = (patches.shape[-2], patches.shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    first = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    positions = interpolate_positions(visual.positional_embedding, tuple(visual.grid_size), grid, mode)
    tokens = torch.cat([first, patches], dim=1) + positions.to(patches.dtype)
    return visual.ln_pre(tokens), grid


def blocks(visual: Any) -> list[Any]:
    """The transformer blocks in order, counted from 0."""
    return list(visual.transformer.resblocks)


def project_qkv(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, D) block input -> q, k, v: (B, m, L, d) each."""
    attention = block.attn
    bias = attention.in_proj_bias
    packed = F.linear(block.ln_1(tokens), attention.in_proj_weight, bias)
    batch, length, width = tokens.shape
    packed = packed.reshape(batch, length, 3, attention.num_heads, width // attention.num_heads)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(block: Any, mixed: Tensor) -> Tensor:
    """(B, m, L, d) -> (B, L, D): heads side by side, through the block's output projection."""
    projected: Tensor = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def native(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention that the tower was trained with: softmax(q k^T / sqrt(d)) v."""
    return F.scaled_dot_product_attention(q, k, v)


def identity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token reads its own value only (MaskCLIP, Zhou et al., 2022)."""
    return v


def run_block(
    block: Any, tokens: Tensor, attention: Attention = native, *, residual: bool = True, ffn: bool = True
) -> Tensor:
    """(B, L, D) -> (B, L, D). Without residual the block's input is not added; without ffn the MLP is left
    out."""
    mixed = block.ls_1(merge_heads(block, attention(*project_qkv(block, tokens))))
    tokens = tokens + mixed if residual else mixed
    return tokens + block.ls_2(feed_forward(block, block.ln_2(tokens))) if ffn else tokens


def feed_forward(block: Any, tokens: Tensor) -> Tensor:
    """The block's MLP, by the names of its layers."""
    hidden: Tensor = block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(tokens)))
    return hidden


def readout(visual: Any, tokens: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, E) in the joint space, not normalised."""
    normed: Tensor = visual.ln_post(tokens)
    return normed if visual.proj is None else normed @ visual.proj
