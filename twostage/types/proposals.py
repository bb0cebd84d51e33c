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
    source: the component that made them.
    """

    masks: Tensor
    scores: Tensor
    embeddings: Tensor | None = None
    logits: RegionScores | None = None
    source: str = ""

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
        )

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
