"""Counts of (predicted class, true class) pixel pairs: all that the segmentation metrics need to know."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.types import VOID

Labels = Tensor | NDArray[Any]
"""A label map: (H, W) integers, position in the vocabulary or VOID (-1)."""


class ConfusionMatrix:
    """(K + 1) x (K + 1) int64 pixel counts: rows are predictions, columns the truth.

    The last row counts pixels that were predicted VOID, the last column those whose truth is ignored (-1).
    Both are kept, so that nothing is lost on the way; `metrics.compute` says who counts where.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise LabelError(f"ConfusionMatrix: expected at least one class, got {num_classes}.")
        self.num_classes = num_classes
        self.counts: NDArray[np.int64] = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def update(self, pred: Labels, gt: Labels, source: str = "") -> None:
        """Count one image (or one batch: any equal shapes).

        pred, gt: integers of one shape on any device, 0..K-1 or -1; source: the image's name, for messages.

        Raises:
            LabelError: the shapes differ, the values are not integers, or a label lies outside -1..K-1.
        """
        pred, gt = torch.as_tensor(pred), torch.as_tensor(gt)
        where = f"{source}: " if source else ""
        if pred.shape != gt.shape:
            raise LabelError(
                f"{where}the prediction is {tuple(pred.shape)} and the ground truth {tuple(gt.shape)}: "
                "resize the scores to the size of the ground truth, never the ground truth."
            )
        if pred.numel() == 0:
            return
        rows = self._positions(pred, f"{where}prediction")
        columns = self._positions(gt.to(pred.device), f"{where}ground truth")
        side = self.num_classes + 1
        pairs = torch.bincount((rows * side + columns).flatten(), minlength=side * side)
        self.counts += pairs.reshape(side, side).cpu().numpy()

    def _positions(self, labels: Tensor, what: str) -> Tensor:
        """int64 rows or columns of the matrix, VOID moved to the last one."""
        if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
            raise LabelError(f"{what}: expected integer labels, got {labels.dtype}: take the arg max first.")
        labels = labels.long()
        low, high = (int(value) for value in labels.aminmax())
        if low < VOID or high >= self.num_classes:
            wrong = low if low < VOID else high
            raise LabelError(
                f"{what}: label {wrong} lies outside {VOID}..{self.num_classes - 1} (K = {self.num_classes}, "
                f"{VOID} = none): map the file's ids to vocabulary positions, its ignore value to {VOID}."
            )
        return torch.where(labels == VOID, self.num_classes, labels)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix (of another process, another part of the data).

        Raises:
            LabelError: the numbers of classes differ.
        """
        if other.num_classes != self.num_classes:
            raise LabelError(
                f"ConfusionMatrix.merge: expected {self.num_classes} classes, got {other.num_classes}: "
                "both must come from one vocabulary."
            )
        self.counts += other.counts

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        total = ConfusionMatrix(self.num_classes)
        total.merge(self)
        total.merge(other)
        return total

    def to_numpy(self) -> NDArray[np.int64]:
        """A copy of the counts, (K + 1, K + 1) int64."""
        return self.counts.copy()

    @classmethod
    def from_numpy(cls, counts: NDArray[Any]) -> ConfusionMatrix:
        """The matrix with these counts.

        Raises:
            LabelError: not a square of non-negative integers of side two or more.
        """
        counts = np.asarray(counts)
        square = counts.ndim == 2 and counts.shape[0] == counts.shape[1] and counts.shape[0] > 1
        if not square or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
            raise LabelError(
                "ConfusionMatrix.from_numpy: expected a square of non-negative integers, side K + 1, got "
                f"{counts.shape} {counts.dtype}."
            )
        matrix = cls(counts.shape[0] - 1)
        matrix.counts += counts.astype(np.int64)
        return matrix
