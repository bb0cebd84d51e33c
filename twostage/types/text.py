"""Text features of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twostage.types.base import require


@dataclass(frozen=True)
class TextBank:
    """What the text tower says of a vocabulary, ready to be compared with image features.

    features: (T, D) float32, rows of length one; class_of: (T,) int64, class of a row (synonyms share one);
    num_classes: K; logit_scale: factor on cosines (the paper's constant is 100);
    no_object: (D,) float32 of length one, or None.
    """

    features: Tensor
    class_of: Tensor
    num_classes: int
    logit_scale: float = 100.0
    no_object: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.features)
        require(
            self.features.ndim == 2 and rows > 0,
            f"TextBank.features: expected (T, D) with T > 0, got {tuple(self.features.shape)}",
        )
        require(
            self.class_of.shape == (rows,),
            f"TextBank.class_of: expected ({rows},), got {tuple(self.class_of.shape)}",
        )
        found = torch.unique(self.class_of.cpu())
        require(
            torch.equal(found, torch.arange(self.num_classes)),
            f"TextBank.class_of: every class of 0..{self.num_classes - 1} needs a row",
        )
        if self.no_object is not None:
            require(
                self.no_object.shape == (self.dim,),
                f"TextBank.no_object: expected ({self.dim},), got {tuple(self.no_object.shape)}",
            )

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return self.features.shape[1]

    def logits(self, unit_features: Tensor) -> Tensor:
        """logit_scale x cosine, (..., D) -> (..., K); a class with synonyms takes its best row."""
        rows = self.logit_scale * (unit_features @ self.features.T.to(unit_features.dtype))
        if len(self.features) == self.num_classes:
            return rows[..., torch.argsort(self.class_of)] if not self._in_order else rows
        out = rows.new_full((*rows.shape[:-1], self.num_classes), -torch.inf)
        index = self.class_of.expand(rows.shape)
        return out.scatter_reduce(-1, index, rows, reduce="amax")

    def subset(self, classes: Sequence[int]) -> TextBank:
        """The rows of these classes alone, which are renumbered in this order.

        Raises:
            ShapeError: no class is asked for, or one that is not there.
        """
        require(len(classes) > 0, "TextBank.subset: the class list is empty: ask for at least one class")
        require(
            min(classes) >= 0 and max(classes) < self.num_classes,
            f"TextBank.subset: expected classes of 0..{self.num_classes - 1}, got {[*classes]}",
        )
        place = torch.full((self.num_classes,), -1, device=self.class_of.device)
        place[list(classes)] = torch.arange(len(classes), device=place.device)
        rows = place[self.class_of] >= 0
        return replace(
            self,
            features=self.features[rows],
            class_of=place[self.class_of[rows]],
            num_classes=len(classes),
        )

    @property
    def _in_order(self) -> bool:
        return torch.equal(self.class_of.cpu(), torch.arange(self.num_classes))

    def to(self, device: torch.device | str) -> TextBank:
        """The same bank on another device."""
        return replace(
            self,
            features=self.features.to(device),
            class_of=self.class_of.to(device),
            no_object=None if self.no_object is None else self.no_object.to(device),
        )
