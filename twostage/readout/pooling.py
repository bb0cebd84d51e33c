"""Regions of an image from one pass of a VisionTransformer: vectors pooled before or after its last layers.

Three ways, by where the many become one: after the tower (means of the patches' unit features), before the
last block's nonlinear part ("values", TextRegion, Xiao et al., 2025), or in the attention itself, where every
region has a class token that looks at its own patches only ("attention", the semantic branch of CorrCLIP,
Zhang et al., 2025).

Shapes: B images, N = h * w patches, L = N + 1 tokens (row 0 is the class token), R regions of one image, D
width, E joint width, m heads of width d.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from twostage.ops.pooling import attend_inside, mean_under
from twostage.readout import vit
from twostage.readout.engine import Tower, read_last, wanted
from twostage.readout.knobs import Knobs
from twostage.readout.record import Record, Wanted, run_early
from twostage.readout.terms import Scene, attend, needs
from twostage.readout.vit import DenseTowerError


class Pass(Protocol):
    """What one pass over B images left behind, from which the regions of each are made. All vectors are in
    the joint space, not normalised.
    """

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        ...

    def image(self) -> Tensor:
        """(B, E): the images as wholes, as the tower was trained to read them."""
        ...

    def places(self, index: int) -> Tensor:
        """(N, E): every place of one image."""
        ...

    def values(self, index: int, shares: Tensor) -> Tensor:
        """(R, E) of one image's regions: values averaged under shares (R, N) before what follows them."""
        ...

    def attention(self, index: int, shares: Tensor) -> Tensor:
        """(R, E) of one image's regions, which hold something: attention inside of shares (R, N)."""
        ...


class Reader(Protocol):
    """A tower and how its regions are read."""

    def look(self, pixels: Tensor) -> Pass:
        """(B, 3, H, W) normalised, in the tower's dtype, H and W multiples of a patch -> one pass."""
        ...


@dataclass(frozen=True)
class VitReader:
    """How a VisionTransformer is read. knobs: of the last block, with the tower's own block numbers;
    blocks: how many last blocks the regions' class tokens go through on their own (level "attention");
    itself: whether such a token also looks at itself, as the trained one does.
    """

    tower: Tower
    knobs: Knobs
    blocks: int = 1
    itself: bool = False

    def __post_init__(self) -> None:
        depth = len(self.tower.blocks)
        if not 1 <= self.blocks <= depth:
            raise DenseTowerError(
                f"Regions by attention: blocks should be 1 to {depth}, the tower's depth, got {self.blocks}."
            )

    def look(self, pixels: Tensor) -> VitPass:
        """(B, 3, H, W) normalised, in the tower's dtype, H and W multiples of a patch -> one pass."""
        tokens, grid = vit.embed(self.tower.visual, pixels, self.knobs.positions)
        depth = len(self.tower.blocks)
        own = range(depth - self.blocks, depth)
        also = Wanted(tokens=frozenset(block - 1 for block in own if block > 0))
        record = run_early(
            self.tower.blocks, tokens, wanted(self.knobs, also), self.tower.channels(self.knobs.suppress)
        )
        entering = {block: record.tokens[block - 1] if block else tokens for block in own}
        return VitPass(self, grid, record, entering)


@dataclass
class VitPass:
    """One pass of a VisionTransformer. entering: (B, L, D) tokens entering the blocks of the regions."""

    reader: VitReader
    grid: tuple[int, int]
    record: Record
    entering: dict[int, Tensor]

    def image(self) -> Tensor:
        """The class token, through the last block as it was trained; its row alone is computed."""
        block, tokens = self.reader.tower.blocks[-1], self.record.entering
        [q] = vit.project(block, tokens[:, :1], "q")
        k, v = vit.project(block, tokens, "kv")
        mixed = F.scaled_dot_product_attention(q, k, v)
        return vit.readout(self.reader.tower.visual, _through(block, tokens[:, :1], mixed))[:, 0]

    def places(self, index: int) -> Tensor:
        """Every patch, read as the knobs say."""
        return vit.readout(self.reader.tower.visual, self._patches[index : index + 1])[0]

    @cached_property
    def _patches(self) -> Tensor:
        """(B, N, D) after the last block."""
        return read_last(self.reader.tower, self.record, self.grid, self.reader.knobs)[0]

    @cached_property
    def _values(self) -> Tensor:
        """(B, m, N, d): the patches' values after the knobs' attention."""
        knobs, tokens = self.reader.knobs, self.record.entering
        with_class = knobs.keys == "all"
        letters = needs(knobs.groups)
        parts = vit.project(self.reader.tower.blocks[-1], tokens if with_class else tokens[:, 1:], letters)
        named = dict(zip(letters, parts, strict=True))
        scene = Scene(named.get("q"), named.get("k"), named["v"], self.grid, with_class, self.record)
        mixed = attend(knobs.groups, scene, knobs.heads == "mean")
        return mixed[:, :, 1:] if with_class else mixed

    def values(self, index: int, shares: Tensor) -> Tensor:
        """ln_post(o_r + MLP(ln_2 o_r)) proj, of o_r = W_o sum_n m_rn v_n + b_o with weights of sum one
        (TextRegion: residual off, MLP on); with the residual the mean of the patches joins o_r.
        """
        tower, knobs = self.reader.tower, self.reader.knobs
        block, rows = tower.blocks[-1], self._values[index]
        heads, _, width = rows.shape
        mean = mean_under(rows.transpose(0, 1).flatten(1), shares).to(rows.dtype)
        out = block.ls_1(vit.merge_heads(block, mean.view(1, -1, heads, width).transpose(1, 2)))
        tokens = self.record.entering[index]
        if knobs.class_token:
            out = out + knobs.class_token * tokens[:1]
        if knobs.residual:
            out = out + mean_under(tokens[1:], shares).to(out.dtype)
        if knobs.ffn:
            channels = tower.channels(knobs.suppress).get(len(tower.blocks) - 1)
            out = out + block.ls_2(vit.feed_forward(block, block.ln_2(out), channels))
        return vit.readout(tower.visual, out)[0]

    def attention(self, index: int, shares: Tensor) -> Tensor:
        """Every region starts as the class token and goes through the last blocks as trained, except that
        it looks at its own patches only, as the blocks before made them for the whole image.
        """
        tower = self.reader.tower
        regions: Tensor | None = None
        for number, entering in self.entering.items():
            block, tokens = tower.blocks[number], entering[index : index + 1]
            if regions is None:
                regions = tokens[:, :1].expand(-1, len(shares), -1)
            q, own_k, own_v = vit.project(block, regions)
            k, v = vit.project(block, tokens[:, 1:], "kv")
            own = (own_k[0], own_v[0]) if self.reader.itself else None
            mixed = attend_inside(q[0], k[0], v[0], shares, own)[None]
            regions = _through(block, regions, mixed)
        assert regions is not None
        return vit.readout(tower.visual, regions)[0]


def _through(block: Any, tokens: Tensor, mixed: Tensor) -> Tensor:
    """(B, L, D) tokens and (B, m, L, d) what they saw -> (B, L, D), the rest of the block as trained."""
    tokens = tokens + block.ls_1(vit.merge_heads(block, mixed))
    out: Tensor = tokens + block.ls_2(vit.feed_forward(block, block.ln_2(tokens)))
    return out
