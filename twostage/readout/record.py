"""What the blocks before the last leave behind for the last one: tokens and attention maps.

Shapes: B images, L tokens (row 0 is the class token), D width, m heads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from twostage.ops.alike import cosines
from twostage.readout import vit
from twostage.readout.channels import Channels


@dataclass(frozen=True)
class Wanted:
    """What to keep. tokens: blocks whose output is kept; maps: sets of blocks whose native maps are averaged;
    self_maps: sets of blocks whose query-query and key-key maps are summed and averaged; mean_heads: keep the
    mean over heads only; looks: keep how the class token looks at patches, and patches at themselves, in the
    block before the last.
    """

    tokens: frozenset[int] = frozenset()
    maps: tuple[tuple[int, ...], ...] = ()
    self_maps: tuple[tuple[int, ...], ...] = ()
    mean_heads: bool = False
    looks: bool = False


@dataclass
class Record:
    """What was kept. tokens[i]: (B, L, D), the output of block i; maps, self_maps: by the set of blocks, (B,
    m, L, L), or (B, 1, L, L) where heads were averaged; entering: (B, L, D), what enters the last block;
    looks: twice (B, N), the class token's attention to each patch and each patch's to itself, mean over
    heads; cosines: `likeness` by block, made once.
    """

    entering: Tensor
    tokens: dict[int, Tensor] = field(default_factory=dict)
    maps: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    self_maps: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    looks: tuple[Tensor, Tensor] | None = None
    cosines: dict[int, Tensor] = field(default_factory=dict)

    def likeness(self, block: int) -> Tensor:
        """(B, N, N) float32 cosines of the patches leaving a block whose tokens were kept."""
        if block not in self.cosines:
            self.cosines[block] = cosines(self.tokens[block][:, 1:])
        return self.cosines[block]


def run_early(
    blocks: list[Any], tokens: Tensor, wanted: Wanted, channels: dict[int, Channels] | None = None
) -> Record:
    """Runs all blocks but the last on (B, L, D) tokens, and keeps what is wanted."""
    record = Record(tokens)
    channels = channels or {}
    watched = {block for group in (*wanted.maps, *wanted.self_maps) for block in group}
    if wanted.looks:
        watched.add(len(blocks) - 2)
    for index, block in enumerate(blocks[:-1]):
        if index in watched:
            looks = wanted.looks and index == len(blocks) - 2
            tokens = _watched_block(
                index, block, tokens, replace(wanted, looks=looks), record, channels.get(index)
            )
        else:
            tokens = vit.run_block(block, tokens, channels.get(index))
        if index in wanted.tokens:
            record.tokens[index] = tokens
    record.entering = tokens
    return record


def _watched_block(
    index: int, block: Any, tokens: Tensor, wanted: Wanted, record: Record, channels: Channels | None
) -> Tensor:
    """One native block whose maps are added to the record."""
    q, k, v = vit.project(block, tokens)
    if wanted.looks or any(index in group for group in wanted.maps):
        native = vit.softmax_map(vit.product(q, k))
        mixed = native @ v
        _add(record.maps, wanted.maps, index, native, wanted.mean_heads)
        if wanted.looks:
            itself = native.diagonal(dim1=2, dim2=3)[:, :, 1:]
            record.looks = native[:, :, 0, 1:].mean(dim=1), itself.mean(dim=1)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v)
    if any(index in group for group in wanted.self_maps):
        own = vit.softmax_map(vit.product(q, q)) + vit.softmax_map(vit.product(k, k))
        _add(record.self_maps, wanted.self_maps, index, own, wanted.mean_heads)
    tokens = tokens + block.ls_1(vit.merge_heads(block, mixed))
    out: Tensor = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens), channels))
    return out


def _add(
    kept: dict[tuple[int, ...], Tensor],
    sets: Iterable[tuple[int, ...]],
    index: int,
    found: Tensor,
    mean_heads: bool,
) -> None:
    found = found.mean(dim=1, keepdim=True) if mean_heads else found
    for group in sets:
        if index in group:
            share = found / len(group)
            kept[group] = kept[group] + share if group in kept else share
