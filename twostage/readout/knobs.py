"""What can be turned on the readout of a CLIP VisionTransformer, each knob apart from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twostage.clip.towers import POSITION_MODES, PositionMode
from twostage.errors import TwostageError
from twostage.readout.attention import AttentionError, Group, parse
from twostage.vocabulary import nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "heads": ("each", "mean"),
    "keys": ("all", "patches"),
    "positions": POSITION_MODES,
}


@dataclass(frozen=True)
class Smoothing:
    """Averages patches by how alike they are: cosines of the tokens leaving block `after`, those below `cut`
    dropped, every row brought to sum one (SC-CLIP, Bai et al., 2024).
    """

    after: int
    cut: float = 0.4


@dataclass(frozen=True)
class LocalOutliers:
    """Patches that stand out by local outlier factor among their nearest `neighbours`; share: of an image's
    patches that count as outliers (SC-CLIP, Bai et al., 2024).
    """

    neighbours: int = 30
    share: float = 0.05


@dataclass(frozen=True)
class ClassOverSelf:
    """Patches that the class token looks at more than they look at themselves: factor * A[class, i] >
    A[i, i] in the block before the last, mean over heads; of these at most `most`, those most looked at (SFP,
    2025; its factor is the class token's share 0.3 times a scale of 5).
    """

    factor: float = 1.5
    most: int = 10


@dataclass(frozen=True)
class Knobs:
    """One way to read the last block. Blocks count from 0.

    attention: where tokens look, as `twostage.readout.attention` writes it. heads: a map for "each" head, or
    their "mean" for all. keys: tokens look at "all", or at "patches" and not at the class token. residual,
    ffn: whether the last block adds its input, and runs its MLP. positions: how the position table is brought
    to the grid. suppress: blocks whose loudest MLP channel is scaled down to the others' mean, () for none
    (GCLIP), suppress_bias: with its bias. repair: which patches entering the last block are outliers, to be
    replaced by the mean of their neighbours, there and in what `smooth_before` and the term similarity
    compare; None: none. class_token: share of the class token entering the last block that every patch gets
    in addition. smooth_before, smooth_after: averaging of like patches at the last block's entrance and exit.
    levels: (first, end) blocks whose outputs, not repaired, are summed, sent through the last attention too
    and added; levels_attention: another attention for these, None for the same.
    """

    attention: str = "qk"
    heads: Literal["each", "mean"] = "each"
    keys: Literal["all", "patches"] = "all"
    residual: bool = True
    ffn: bool = True
    positions: PositionMode = "bicubic_scale"
    suppress: tuple[int, ...] = ()
    suppress_bias: bool = False
    repair: LocalOutliers | ClassOverSelf | None = None
    class_token: float = 0.0
    smooth_before: Smoothing | None = None
    smooth_after: Smoothing | None = None
    levels: tuple[int, int] | None = None
    levels_attention: str | None = None

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            value = getattr(self, option)
            if value not in allowed:
                raise TwostageError(f"Knobs: unknown {option} {value!r}.{nearest(str(value), allowed)}")
        for group in (*self.groups, *self.level_groups):
            names = {term.name for term in group.terms}
            if self.keys == "all" and "similarity" in names:
                raise AttentionError(
                    f"Attention {self.attention!r}: similarity knows patches only: it needs keys 'patches'."
                )

    @property
    def groups(self) -> tuple[Group, ...]:
        """The attention of the main path."""
        return parse(self.attention)

    @property
    def level_groups(self) -> tuple[Group, ...]:
        """The attention of the summed levels."""
        return parse(self.attention if self.levels_attention is None else self.levels_attention)
