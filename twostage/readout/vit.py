"""A CLIP VisionTransformer computed from its parameters, block by block.

Nothing is patched or hooked: the layers' weights are read and the arithmetic is done here, so the model stays
as it is and other models may share it at the same time.

Shapes: B images, h x w patch grid, N = h * w, L = N + 1 tokens (row 0 is the class token), D width, m heads
of width d, E joint width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.clip.towers import PositionMode, interpolate_positions, is_vit
from twostage.errors import TwostageError
from twostage.readout.channels import Channels


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


def project(block: Any, tokens: Tensor, parts: str = "qkv") -> list[Tensor]:
    """(B, L, D) block input -> the asked ones of q, k, v: (B, m, L, d) each, in the order of `parts`.

    What is not asked for is not computed.
    """
    return project_normed(block, block.ln_1(tokens), parts)


def project_normed(block: Any, normed: Tensor, parts: str = "qkv") -> list[Tensor]:
    """The same of (B, L, D) tokens that have been through ln_1 already."""
    attention = block.attn
    batch, length, width = normed.shape
    heads = attention.num_heads
    where = [slice("qkv".index(part) * width, ("qkv".index(part) + 1) * width) for part in parts]
    if parts == "qkv":
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
    else:
        weight = torch.cat([attention.in_proj_weight[one] for one in where])
        bias = attention.in_proj_bias
        bias = None if bias is None else torch.cat([bias[one] for one in where])
    packed = F.linear(normed, weight, bias).reshape(batch, length, len(parts), heads, width // heads)
    return list(packed.permute(2, 0, 3, 1, 4).unbind(0))


def merge_heads(block: Any, mixed: Tensor) -> Tensor:
    """(B, m, L, d) -> (B, L, D): heads side by side, through the block's output projection."""
    projected: Tensor = block.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def softmax_map(logits: Tensor) -> Tensor:
    """(..., L) -> the same in its own dtype, the softmax taken in float32."""
    return logits.float().softmax(dim=-1).to(logits.dtype)


def product(a: Tensor, b: Tensor) -> Tensor:
    """(B, m, L, d) twice -> (B, m, L, L), their products over sqrt(d)."""
    found: Tensor = (a * a.shape[-1] ** -0.5) @ b.transpose(-2, -1)
    return found


def run_block(block: Any, tokens: Tensor, channels: Channels | None = None) -> Tensor:
    """(B, L, D) -> (B, L, D), as the tower was trained."""
    q, k, v = project(block, tokens)
    tokens = tokens + block.ls_1(merge_heads(block, F.scaled_dot_product_attention(q, k, v)))
    out: Tensor = tokens + block.ls_2(feed_forward(block, block.ln_2(tokens), channels))
    return out


def feed_forward(block: Any, tokens: Tensor, channels: Channels | None = None) -> Tensor:
    """The block's MLP, by the names of its layers; some of its output channels may be scaled (see
    `twostage.readout.channels`), which leaves the weights as they are.
    """
    hidden: Tensor = block.mlp.c_proj(block.mlp.gelu(block.mlp.c_fc(tokens)))
    return hidden if channels is None else channels.scale(hidden, block.mlp.c_proj.bias)


def readout(visual: Any, tokens: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, E) in the joint space, not normalised."""
    normed: Tensor = visual.ln_post(tokens)
    return normed if visual.proj is None else normed @ visual.proj
