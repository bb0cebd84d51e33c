"""Masks without names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twostage.types.base import require, row_index
from twostage.types.scores import RegionScores


@dataclass(frozen=True)
class Proposals:
    """Masks of one image that nobody has named yet.

    masks: (N, H, W) float32 in [0, 1], or bool; scores: (N,) float32, larger is better;
    embeddings: (N, D) float32 or None, the stage's own class embedding of each mask;
    logits: RegionScores or None, the stage's own opinion of the classes it was asked about;
    source: the component that made them; sources: N names, who made each mask, where that differs from mask
    to mask, or None.
    """

    masks: Tensor
    scores: Tensor
    embeddings: Tensor | None = None
    logits: RegionScores | None = None
    source: str = ""
    sources: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.masks.ndim == 3, f"Proposals.masks: expected (N, H, W), got {tuple(self.masks.shape)}")
        kind = self.masks.dtype
        require(
            kind == torch.bool or kind.is_floating_point,
            f"Proposals.masks: expected bool or float, got {kind}",
        )
        count = len(self.masks)
        require(
            self.scores.shape == (count,),
            f"Proposals.scores: expected ({count},), got {tuple(self.scores.shape)}",
        )
        if self.embeddings is not None:
            require(
                self.embeddings.ndim == 2 and len(self.embeddings) == count,
                f"Proposals.embeddings: expected ({count}, D), got {tuple(self.embeddings.shape)}",
            )
        if self.logits is not None:
            require(
                len(self.logits) == count, f"Proposals.logits: expected {count} rows, got {len(self.logits)}"
            )
        if self.sources is not None:
            require(
                len(self.sources) == count,
                f"Proposals.sources: expected {count} names, got {len(self.sources)}",
            )

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Proposals:
        index = row_index(index)
        return replace(
            self,
            masks=self.masks[index],
            scores=self.scores[index],
            embeddings=None if self.embeddings is None else self.embeddings[index],
            logits=None if self.logits is None else self.logits[index],
            sources=None if self.sources is None else _picked(self.sources, index),
        )

    @staticmethod
    def cat(parts: Sequence[Proposals], source: str) -> Proposals:
        """The masks of one image from several makers, in their order; `sources` tells who made which.

        parts: one or more, masks of one size on one device. Masks become float32 where some are soft and some
        bool. Embeddings stay where all parts have some of one width, logits where `RegionScores.cat` can join
        them; otherwise they are None, since a row without them would count as an opinion.
        """
        soft = len({part.masks.dtype for part in parts}) > 1
        widths = {None if p.embeddings is None else p.embeddings.shape[1] for p in parts}
        embeddings = [part.embeddings for part in parts if part.embeddings is not None]
        logits = [part.logits for part in parts if part.logits is not None]
        return Proposals(
            torch.cat([part.masks.float() if soft else part.masks for part in parts]),
            torch.cat([part.scores for part in parts]),
            torch.cat(embeddings) if len(widths) == 1 and embeddings else None,
            RegionScores.cat(logits) if len(logits) == len(parts) else None,
            source,
            tuple(name for part in parts for name in part.made_by()),
        )

    def made_by(self) -> tuple[str, ...]:
        """N names: who made each mask."""
        return (self.source,) * len(self) if self.sources is None else self.sources

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the masks in pixels."""
        return self.masks.shape[-2], self.masks.shape[-1]

    def to(self, device: torch.device | str) -> Proposals:
        """The same proposals on another device."""
        return replace(
            self,
            masks=self.masks.to(device),
            scores=self.scores.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device),
            logits=None if self.logits is None else self.logits.to(device),
        )


def _picked(names: tuple[str, ...], index: Tensor | slice) -> tuple[str, ...]:
    """The names of some rows, by the same index as the rows of a tensor."""
    rows = torch.arange(len(names))[index.cpu() if isinstance(index, Tensor) else index]
    return tuple(names[row] for row in rows.tolist())
