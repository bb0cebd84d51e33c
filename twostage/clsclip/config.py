"""Every number of the ClsCLIP network in one place; defaults fit CLIP's ViT-B/16."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.clip.towers import POSITION_MODES, PositionMode
from twostage.errors import TwostageError
from twostage.vocabulary import nearest

NATIVE_DEPTH = 12
"""The number of blocks that `blocks` is counted in (ViT-B)."""


class ClsClipError(TwostageError):
    """The network cannot be built from these options, or was given something that it cannot read."""


@dataclass(frozen=True)
class ClsClipNetworkConfig:
    """Options of the trained half of ClsCLIP. What the published text leaves open is marked so.

    embedding_dim: width of the text features; width, depth: width of a token and number of blocks of the
        image tower; these three are taken from CLIP.MODEL where they are not given.
    blocks: (first, end) blocks whose class token is the word, counted from 0 in a tower of twelve and moved
        in proportion for others; (2, 5) is the paper's best setting.
    per_layer: one linear map for each of these blocks instead of one for all (open; the follow-up ESDA has
        one).
    positions: how the position table is brought to the grid.
    decoder_layers, decoder_heads, decoder_factor: pre-norm transformer layers over the patches, their heads,
        and how many times wider than a token their hidden layers are (two layers; the rest is open).
    head_widths: channels of the 3 x 3 convolutions after them (ESDA's); dropout: before the last, 1 x 1.
    """

    embedding_dim: int = 512
    width: int = 768
    depth: int = 12
    blocks: tuple[int, ...] = (2, 5)
    per_layer: bool = False
    positions: PositionMode = "bilinear"
    decoder_layers: int = 2
    decoder_heads: int = 12
    decoder_factor: int = 4
    head_widths: tuple[int, ...] = (256, 128, 64)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "width", "depth", "decoder_heads", "decoder_factor"):
            if getattr(self, name) < 1:
                raise ClsClipError(
                    f"ClsClipNetworkConfig.{name}: expected 1 or more, got {getattr(self, name)}."
                )
        if self.decoder_layers < 0 or not 0 <= self.dropout < 1:
            raise ClsClipError(
                "ClsClipNetworkConfig: expected decoder_layers of 0 or more and dropout in [0, 1), got "
                f"{self.decoder_layers} and {self.dropout}."
            )
        if len(self.blocks) != 2 or not 0 <= self.blocks[0] < self.blocks[1] <= NATIVE_DEPTH:
            raise ClsClipError(
                f"ClsClipNetworkConfig.blocks: expected (first, end) with 0 <= first < end <= "
                f"{NATIVE_DEPTH}, got {self.blocks}. Blocks are counted in a tower of {NATIVE_DEPTH}."
            )
        if self.width % self.decoder_heads:
            raise ClsClipError(
                f"ClsClipNetworkConfig.decoder_heads: {self.decoder_heads} heads cannot share a width of "
                f"{self.width} evenly. Choose a divisor of it."
            )
        if not self.head_widths or min(self.head_widths) < 1:
            raise ClsClipError(
                f"ClsClipNetworkConfig.head_widths: expected one or more channels, got {self.head_widths}."
            )
        if self.positions not in POSITION_MODES:
            raise ClsClipError(
                f"ClsClipNetworkConfig: unknown positions {self.positions!r}."
                + nearest(str(self.positions), POSITION_MODES)
            )

    @property
    def placed(self) -> tuple[int, int]:
        """`blocks` in a tower of `depth` blocks."""
        first, end = self.blocks
        return moved(first, self.depth), moved(end - 1, self.depth) + 1


def moved(block: int, depth: int) -> int:
    """Block `block` of a tower of twelve, in proportion in one of `depth`."""
    return block if depth == NATIVE_DEPTH else min(int((block + 0.5) * depth / NATIVE_DEPTH), depth - 1)
