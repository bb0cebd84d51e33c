"""One pass of a VisionTransformer in which every mask has a class token of its own beside the image's.

The tokens of the image go through the blocks as they were trained and never see the tokens of the masks, so
they are computed once, keys and values too. A mask's token is a copy of the class token that may look at the
patches of its mask and, as the trained one does, at itself. That class tokens may be restricted to a region
in this manner is known from mask-guided attention in single-pass open-vocabulary segmentation (MaskCLIP, Ding
et al., 2022, "relative mask attention"); what is computed here is our own formulation.

Shapes: B images, N = h * w patches, L = N + 1 tokens (row 0 is the class token), R masks of one image, D
width, m heads of width d.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ops.pooling import attend_inside
from twostage.readout import vit
from twostage.readout.engine import Tower
from twostage.readout.vit import DenseTowerError


def held_patches(shares: Tensor, least: float) -> Tensor:
    """Which patches a mask's token may look at.

    shares: (R, N) in [0, 1], how much of each patch a mask covers; least: a patch counts from this share on.
    A mask without such a patch holds the patch that it covers most (of equals the first). -> (R, N) bool; a
    row without any share holds nothing.
    """
    held = shares >= least
    best, where = shares.max(dim=1, keepdim=True)
    lone = torch.zeros_like(held).scatter(1, where, best > 0)
    return torch.where(held.any(dim=1, keepdim=True), held, lone)


def look_with_masks(
    tower: Tower,
    tokens: Tensor,
    held: Tensor,
    from_block: int = 0,
    itself: bool = True,
    mask_chunk: int = 128,
) -> tuple[Tensor, Tensor]:
    """All blocks on the tokens of the image and of its masks.

    tokens: (B, L, D) entering block 0; held: (B, R, N) bool, at least one patch a mask; from_block: the
    masks' tokens part from the image's class token in front of this block, having seen the whole image
    before; itself: whether such a token looks at itself too; mask_chunk: masks whose attention is computed at
    once, which bounds the memory for B * m * R * N numbers.

    Returns (B, R, D) and (B, 1, D): the tokens of the masks and of the image after the last block.

    Raises:
        DenseTowerError: the tower has no block of this number.
    """
    depth, length = len(tower.blocks), tokens.shape[1]
    if not 0 <= from_block < depth:
        raise DenseTowerError(
            f"from_block should be 0 to {depth - 1}, a block of the tower, got {from_block}."
        )
    shares = held[:, None].float()
    for number, block in enumerate(tower.blocks):
        if number == from_block:
            tokens = torch.cat([tokens, tokens[:, :1].expand(-1, held.shape[1], -1)], dim=1)
        last = number == depth - 1
        tokens = _through(block, tokens, length, shares, itself, mask_chunk, last)
    return tokens[:, 1:], tokens[:, :1]


def _through(
    block: Any, tokens: Tensor, length: int, shares: Tensor, itself: bool, mask_chunk: int, last: bool
) -> Tensor:
    """(B, L + R, D), the tokens of the masks at the end, if any -> the same after a block; after the last one
    only what is read out, (B, 1 + R, D).
    """
    normed = block.ln_1(tokens)
    if last:  # nobody looks at the patches any more
        tokens, length_out = torch.cat([tokens[:, :1], tokens[:, length:]], dim=1), 1
        [q] = vit.project_normed(block, torch.cat([normed[:, :1], normed[:, length:]], dim=1), "q")
        k, v = vit.project_normed(block, normed, "kv")
    else:
        (q, k, v), length_out = vit.project_normed(block, normed), length
    mixed = [F.scaled_dot_product_attention(q[:, :, :length_out], k[:, :, :length], v[:, :, :length])]
    for start in range(0, tokens.shape[1] - length_out, mask_chunk):
        part = slice(start, start + mask_chunk)
        own = (k[:, :, length:][:, :, part], v[:, :, length:][:, :, part]) if itself else None
        looking = q[:, :, length_out:][:, :, part]
        mixed.append(attend_inside(looking, k[:, :, 1:length], v[:, :, 1:length], shares[:, :, part], own))
    tokens = tokens + block.ls_1(vit.merge_heads(block, torch.cat(mixed, dim=2)))
    out: Tensor = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens)))
    return out
