"""Numbers of one-word segmentation: pixel counts over pairs of a photo and a class, fold mIoU and FB-IoU.

Every pair has a binary answer. A class's IoU is taken from the counts of all its pairs together; a fold's
mIoU is the mean over its held-out classes; FB-IoU is the mean of the IoU of foreground and of background over
all pairs whatever their class (Rakelly et al., "Conditional Networks for Few-Shot Semantic Segmentation",
ICLR workshop 2018). All in percent; None is "not a number".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.data.folds import Split
from twostage.evaluation.metrics import harmonic_mean
from twostage.types import VOID
from twostage.vocabulary import Vocabulary


class PairCounts:
    """(K, 4) int64 pixels of each class's pairs: found and true, found but not true, missed, neither."""

    def __init__(self, num_classes: int) -> None:
        if num_classes < 1:
            raise LabelError(f"PairCounts: expected at least one class, got {num_classes}.")
        self.counts: NDArray[np.int64] = np.zeros((num_classes, 4), np.int64)
        self.pairs: NDArray[np.int64] = np.zeros(num_classes, np.int64)

    def update(self, label: int, found: Tensor, labels: Tensor, void_is_background: bool = False) -> None:
        """Count one pair.

        label: the class; found: (H, W) bool; labels: (H, W) integers, VOID where ignored, unless that is
        background.

        Raises:
            LabelError: the class is none of these, or the shapes differ.
        """
        if not 0 <= label < len(self.counts):
            raise LabelError(f"PairCounts: class {label} lies outside 0..{len(self.counts) - 1}.")
        if found.shape != labels.shape or found.dtype != torch.bool:
            raise LabelError(
                f"PairCounts: expected a bool map of the labels' size {tuple(labels.shape)}, got "
                f"{found.dtype} {tuple(found.shape)}: resize the logits, never the ground truth."
            )
        true = labels == label
        judged = torch.ones_like(true) if void_is_background else labels != VOID
        kinds = 2 * (~found).long() + (found ^ true).long()  # hit 0, false alarm 1, rightly quiet 2, miss 3
        hit, alarm, quiet, miss = torch.bincount(kinds[judged], minlength=4).tolist()
        self.counts[label] += np.array([hit, alarm, miss, quiet], np.int64)
        self.pairs[label] += 1

    def merge(self, other: PairCounts) -> None:
        """Add the counts of another process or part of the data.

        Raises:
            LabelError: the numbers of classes differ.
        """
        if self.counts.shape != other.counts.shape:
            raise LabelError(
                f"PairCounts.merge: expected {len(self.counts)} classes, got {len(other.counts)}: both must "
                "come from one vocabulary."
            )
        self.counts += other.counts
        self.pairs += other.pairs


@dataclass(frozen=True)
class PairClass:
    """One class over its pairs. held_out: None where it takes no part; pairs: photos that were asked."""

    name: str
    held_out: bool | None
    IoU: float | None
    pairs: int
    gt_pixels: int
    found_pixels: int


@dataclass(frozen=True)
class PairMetrics:
    """unseen: mIoU of the held-out classes, the fold's number; seen: of the base classes, where they were
    asked; FB_IoU: over the held-out classes' pairs; FB_IoU_seen: over the base classes'.
    """

    unseen: float | None
    seen: float | None
    FB_IoU: float | None
    FB_IoU_seen: float | None
    classes: tuple[PairClass, ...]

    def as_dict(self) -> dict[str, Any]:
        """A flat row for results files."""
        return {
            "seen": self.seen,
            "unseen": self.unseen,
            "hIoU": harmonic_mean(self.seen, self.unseen),
            "FB-IoU": self.FB_IoU,
            "FB-IoU seen": self.FB_IoU_seen,
            "classes": [
                {**one.__dict__, "seen": None if one.held_out is None else not one.held_out}
                for one in self.classes
            ],
        }


def compute_pairs(counts: PairCounts, vocabulary: Vocabulary, split: Split) -> PairMetrics:
    """Every number of a fold.

    Raises:
        LabelError: the vocabulary has another number of classes.
    """
    if len(vocabulary) != len(counts.counts):
        raise LabelError(
            f"compute_pairs: counts of {len(counts.counts)} classes, a vocabulary of {len(vocabulary)}."
        )
    held_out, base = set(split.held_out), set(split.base)
    classes = []
    for position, name in enumerate(vocabulary.shown):
        hit, alarm, miss, _ = (int(value) for value in counts.counts[position])
        role = position in held_out if position in held_out | base else None
        iou = _percent(hit, hit + alarm + miss) if counts.pairs[position] else None
        classes.append(PairClass(name, role, iou, int(counts.pairs[position]), hit + miss, hit + alarm))
    return PairMetrics(
        unseen=_mean([classes[position].IoU for position in split.held_out]),
        seen=_mean([classes[position].IoU for position in split.base]),
        FB_IoU=_fb_iou(counts.counts[list(split.held_out)]),
        FB_IoU_seen=_fb_iou(counts.counts[list(split.base)]),
        classes=tuple(classes),
    )


def mean_over_folds(folds: Sequence[PairMetrics]) -> PairMetrics:
    """The mean of the folds' numbers, as PASCAL-5i and COCO-20i are reported; no classes.

    A number that one fold lacks is none.
    """

    def mean(name: str) -> float | None:
        values = [getattr(fold, name) for fold in folds]
        return None if None in values else _mean(values)

    return PairMetrics(mean("unseen"), mean("seen"), mean("FB_IoU"), mean("FB_IoU_seen"), ())


def _fb_iou(rows: NDArray[np.int64]) -> float | None:
    hit, alarm, miss, quiet = (int(value) for value in rows.sum(axis=0))
    foreground, background = _percent(hit, hit + alarm + miss), _percent(quiet, quiet + alarm + miss)
    return None if foreground is None or background is None else (foreground + background) / 2


def _percent(part: int, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
