"""Two paths through the last blocks: the tower as it was trained, and one that only gathers attention.

CLIP Surgery and GEM leave the tower's own path as it is and fork a second one off it. Every block adds to the
second path what another attention makes of the FIRST path's tokens; it has no MLP, and no block reads it. Its
patches are what is compared with the text.

Shapes: B images, h x w grid, N = h * w, L = N + 1 tokens (row 0 is the class token), D width, m heads of
width d, E joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout import vit
from twostage.readout.channels import Channels
from twostage.readout.engine import NATIVE_DEPTH, Tower
from twostage.readout.knobs import Knobs


@dataclass(frozen=True)
class Heads:
    """What a block's attention reads. q, k, v: (B, m, L, d) each; normed: (B, L, D), the tokens after ln_1
    that they are made of; grid: (h, w).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    normed: Tensor
    grid: tuple[int, int]


Mixer = Callable[[Heads], Tensor]
"""The second path's attention: heads -> (B, m, L, d), before the block's output projection."""


@dataclass(frozen=True)
class TwoPaths:
    """What both paths end with, in the joint space, not normalised. features: (B, N, E), patches of the
    second path; first: (B, E), the class token of the tower's own path; second_first: (B, E), that of the
    second path; original: (B, N, E), patches of the tower's own path, None where they were not asked for;
    grid: (h, w).
    """

    features: Tensor
    first: Tensor
    second_first: Tensor
    original: Tensor | None
    grid: tuple[int, int]

    @property
    def unit(self) -> Tensor:
        """(B, N, E) float32 rows of length one."""
        return F.normalize(self.features.float(), dim=-1)

    @property
    def unit_first(self) -> Tensor:
        """(B, E) float32 rows of length one."""
        return F.normalize(self.first.float(), dim=-1)


def fork_of(blocks: int, depth: int, preset: str = "") -> int:
    """The first block with two paths in a tower of this depth.

    blocks: how many blocks have two, as counted for the twelve blocks of ViT-B; other depths get the same
    share of theirs, rounded, at least one.

    Raises:
        TwostageError: not between 1 and 12.
    """
    if not 1 <= blocks <= NATIVE_DEPTH or blocks != int(blocks):
        raise TwostageError(
            f"Preset {preset}: blocks should be a whole number from 1 to {NATIVE_DEPTH} (the share of the "
            f"tower's blocks that get a second path, counted in ViT-B's), got {blocks}."
        )
    return depth - max(1, round(blocks * depth / NATIVE_DEPTH))


def read_two(
    tower: Tower, pixels: Tensor, fork: int, mix: Mixer, knobs: Knobs, original: bool = False
) -> TwoPaths:
    """Both paths in one pass over the images.

    pixels: (B, 3, H, W) normalised, in the tower's dtype, H and W multiples of its patch; fork: the first
    block with two paths, counted from 0; mix: the second path's attention; knobs: of which positions and
    suppress count here; original: also read out the patches of the tower's own path. Where nobody asks for
    them, that path runs through the last block with its class token alone.
    """
    tokens, grid = vit.embed(tower.visual, pixels, knobs.positions)
    channels, last = tower.channels(knobs.suppress), len(tower.blocks) - 1
    for index, block in enumerate(tower.blocks[:fork]):
        tokens = vit.run_block(block, tokens, channels.get(index))
    second = tokens
    for index in range(fork, last + 1):
        block = tower.blocks[index]
        normed = block.ln_1(tokens)
        q, k, v = vit.project_normed(block, normed)
        heads = Heads(q, k, v, normed, grid)
        second = second + block.ls_1(vit.merge_heads(block, mix(heads)))
        rows = tokens.shape[1] if original or index < last else 1
        tokens = _own(block, tokens[:, :rows], heads, channels.get(index))
    own, gathered = (vit.readout(tower.visual, path) for path in (tokens, second))
    return TwoPaths(gathered[:, 1:], own[:, 0], gathered[:, 0], own[:, 1:] if original else None, grid)


def _own(block: Any, tokens: Tensor, heads: Heads, channels: Channels | None) -> Tensor:
    """(B, R, D), the first R rows that enter a block -> (B, R, D), what the trained block makes of them."""
    mixed = F.scaled_dot_product_attention(heads.q[:, :, : tokens.shape[1]], heads.k, heads.v)
    tokens = tokens + block.ls_1(vit.merge_heads(block, mixed))
    out: Tensor = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens), channels))
    return out


def refuse_turned(knobs: Knobs, own: Knobs, free: Collection[str], preset: str) -> None:
    """Refuse knobs that a preset with two paths has no use for, rather than pass over them.

    knobs: as they were turned; own: the preset's; free: names of those that may be turned.

    Raises:
        TwostageError: with the knob, both values and the ones that may be turned.
    """
    for knob in fields(Knobs):
        asked, usual = getattr(knobs, knob.name), getattr(own, knob.name)
        same = knobs.groups == own.groups if knob.name == "attention" else asked == usual
        if knob.name not in free and not same:
            raise TwostageError(
                f"Preset {preset}: {knob.name} has to stay {usual!r}, got {asked!r}: its second path has no "
                f"such part. Leave it, or choose another preset. Can be turned: {', '.join(sorted(free))}."
            )
