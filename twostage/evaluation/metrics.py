"""From a confusion matrix to the numbers that papers report: IoU and accuracy, in all, seen, unseen.

K classes; tp = diagonal; gt = pixels of a class in the truth, those predicted VOID included (a miss stays in
the union); pr = pixels predicted as the class where the truth is not ignored. IoU = tp / (gt + pr - tp) and
Acc = tp / gt, both known only for classes with gt > 0. All in percent and unrounded; None is "not a number".

A class that is absent from the truth but was predicted can be judged in two ways; both are reported:
`mIoU` counts it as IoU 0 (the mean runs over gt > 0 or pr > 0: the zero-shot papers' way),
`mIoU_skip` leaves it out (the mean runs over gt > 0: Detectron2's way).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.data.errors import LabelError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.vocabulary import Vocabulary

MIOU_CONVENTION = {
    "mIoU": "penalise: a class that is predicted but absent from the ground truth counts as IoU 0",
    "mIoU_skip": "skip: the mean runs over the classes present in the ground truth",
}
"""What the two columns mean, in words for results files; `_skip` marks seen, unseen and hIoU likewise."""


@dataclass(frozen=True)
class SetScores:
    """The scores of one set of classes in percent, None where the set has nothing to judge."""

    mIoU: float | None
    mIoU_skip: float | None
    mAcc: float | None
    pAcc: float | None
    fwIoU: float | None


@dataclass(frozen=True)
class SplitScores:
    """A set of classes against all the others; hIoU is the harmonic mean of the two mIoU."""

    inside: SetScores
    outside: SetScores

    @property
    def hIoU(self) -> float | None:
        return harmonic_mean(self.inside.mIoU, self.outside.mIoU)

    @property
    def hIoU_skip(self) -> float | None:
        return harmonic_mean(self.inside.mIoU_skip, self.outside.mIoU_skip)


@dataclass(frozen=True)
class ClassScores:
    """One class: IoU and Acc in percent, None when absent from the truth, and its pixel counts."""

    name: str
    seen: bool | None
    IoU: float | None
    Acc: float | None
    gt_pixels: int
    predicted_pixels: int


@dataclass(frozen=True)
class Metrics:
    """All numbers of one system on one data set.

    overall: every class; seen: seen against unseen classes, None without flags; subsets: more
    named splits; classes: one entry a class in vocabulary order; void_share: percent of judged pixels that
    were predicted VOID.
    """

    overall: SetScores
    seen: SplitScores | None
    classes: tuple[ClassScores, ...]
    void_share: float | None
    subsets: dict[str, SplitScores] = field(default_factory=dict)

    @property
    def hIoU(self) -> float | None:
        """Harmonic mean of seen and unseen mIoU: 0 when one is 0, None without flags or unseen classes."""
        return None if self.seen is None else self.seen.hIoU

    def as_dict(self) -> dict[str, Any]:
        """A flat row for results files: seen, unseen, hIoU, mIoU, ..., then `subsets` and `classes`."""
        split = self.seen
        inside = None if split is None else split.inside
        outside = None if split is None else split.outside
        return {
            "seen": inside and inside.mIoU,
            "unseen": outside and outside.mIoU,
            "hIoU": self.hIoU,
            "seen_skip": inside and inside.mIoU_skip,
            "unseen_skip": outside and outside.mIoU_skip,
            "hIoU_skip": split and split.hIoU_skip,
            "seen_pAcc": inside and inside.pAcc,
            "unseen_pAcc": outside and outside.pAcc,
            **asdict(self.overall),
            "void_share": self.void_share,
            "subsets": {name: _split_row(scores) for name, scores in self.subsets.items()},
            "classes": [asdict(scores) for scores in self.classes],
        }


def compute(
    confusion: ConfusionMatrix, vocabulary: Vocabulary, subsets: Mapping[str, Sequence[int]] | None = None
) -> Metrics:
    """Every metric of a confusion matrix.

    vocabulary: the K classes in the matrix' order; its seen flags give seen, unseen and hIoU; subsets: named
    lists of class positions, each of which is judged against its complement ("base", "novel_thing", ...).

    Raises:
        LabelError: the vocabulary has another number of classes, or a subset names a position outside 0..K-1.
    """
    if len(vocabulary) != confusion.num_classes:
        raise LabelError(
            f"metrics.compute: the confusion matrix has {confusion.num_classes} classes and the vocabulary "
            f"{len(vocabulary)}: both must come from one class list."
        )
    table = _Table.of(confusion)
    splits = {
        name: table.split(_members(name, chosen, len(vocabulary))) for name, chosen in (subsets or {}).items()
    }
    seen = None if vocabulary.seen is None else table.split(np.array(vocabulary.seen, bool))
    everything = np.ones(len(vocabulary), bool)
    void, judged = int(confusion.counts[-1, :-1].sum()), int(table.gt.sum())
    return Metrics(
        overall=table.scores(everything),
        seen=seen,
        classes=tuple(table.of_class(position, vocabulary) for position in range(len(vocabulary))),
        void_share=_percent(void, judged),
        subsets=splits,
    )


def harmonic_mean(first: float | None, second: float | None) -> float | None:
    """2 / (1 / a + 1 / b); 0 when either is 0, None when either is None."""
    if first is None or second is None:
        return None
    if first == 0 or second == 0:
        return 0.0
    return 2.0 / (1.0 / first + 1.0 / second)


@dataclass(frozen=True)
class _Table:
    """Per-class sums: tp, gt and pr are (K,) int64 pixels."""

    tp: NDArray[np.int64]
    gt: NDArray[np.int64]
    pr: NDArray[np.int64]

    @classmethod
    def of(cls, confusion: ConfusionMatrix) -> _Table:
        counts = confusion.counts
        return cls(np.diagonal(counts)[:-1].copy(), counts[:, :-1].sum(axis=0), counts[:-1, :-1].sum(axis=1))

    @property
    def iou(self) -> NDArray[np.float64]:
        """(K,) in 0..1, 0 where the class has no pixel at all."""
        union = self.gt + self.pr - self.tp
        return np.asarray(self.tp / np.maximum(union, 1), np.float64)

    def scores(self, members: NDArray[np.bool_]) -> SetScores:
        """The scores of the classes flagged in members, (K,) bool."""
        present = members & (self.gt > 0)
        named = members & ((self.gt > 0) | (self.pr > 0))
        pixels = int(self.gt[present].sum())
        iou_sum = float(self.iou[present].sum())
        acc_sum = float((self.tp[present] / self.gt[present]).sum())
        return SetScores(
            mIoU=_percent(iou_sum, int(named.sum())),
            mIoU_skip=_percent(iou_sum, int(present.sum())),
            mAcc=_percent(acc_sum, int(present.sum())),
            pAcc=_percent(int(self.tp[present].sum()), pixels),
            fwIoU=_percent(float((self.iou * self.gt)[present].sum()), pixels),
        )

    def split(self, members: NDArray[np.bool_]) -> SplitScores:
        return SplitScores(self.scores(members), self.scores(~members))

    def of_class(self, position: int, vocabulary: Vocabulary) -> ClassScores:
        tp, gt, pr = (int(sums[position]) for sums in (self.tp, self.gt, self.pr))
        return ClassScores(
            name=vocabulary.shown[position],
            seen=None if vocabulary.seen is None else vocabulary.seen[position],
            IoU=_percent(tp, gt + pr - tp) if gt else None,
            Acc=_percent(tp, gt),
            gt_pixels=gt,
            predicted_pixels=pr,
        )


def _percent(part: float, whole: int) -> float | None:
    return 100.0 * part / whole if whole else None


def _members(name: str, positions: Sequence[int], count: int) -> NDArray[np.bool_]:
    members = np.zeros(count, bool)
    for position in positions:
        if not 0 <= position < count:
            raise LabelError(f"Subset {name!r}: position {position} lies outside 0..{count - 1}.")
        members[position] = True
    return members


def _split_row(split: SplitScores) -> dict[str, Any]:
    return {
        "inside": asdict(split.inside),
        "outside": asdict(split.outside),
        "hIoU": split.hIoU,
        "hIoU_skip": split.hIoU_skip,
    }
