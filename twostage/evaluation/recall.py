"""How good stage one could be at best: do the masks cover what is there, whatever they are called?

Shapes: N proposals, M true masks, K classes. A soft mask is binarised strictly above the threshold (0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.ops.fusion import RowResizer, mix_strip, strips
from twostage.types import VOID, Proposals
from twostage.vocabulary import Vocabulary

TruthOf = Callable[[int, int], tuple[Tensor, Tensor]]
"""Rows [first, last) of the truth: M masks (M, r, W) bool, and which pixels count (r, W) bool."""


def mask_iou(proposals: Proposals, truth: TruthOf, size_hw: tuple[int, int], threshold: float) -> Tensor:
    """Intersection over union of every proposal with every true mask, (N, M) float64, 0 where both are empty.

    size_hw: the truth's size, to which the masks are brought by bilinear interpolation, a strip of rows at a
    time, so that N masks of that size never exist together.
    """
    if len(proposals) == 0:
        return torch.zeros(0, len(truth(0, 1)[0]), dtype=torch.float64, device=proposals.masks.device)
    resizer = RowResizer(proposals.size_hw, size_hw)
    both: Tensor | None = None
    mine = theirs = torch.zeros((), dtype=torch.float64)
    for first, last in strips(len(proposals), size_hw):
        wanted, counted = truth(first, last)
        found = resizer.strip(proposals.masks, first, last) > threshold
        rows = (found & counted).flatten(1).float()
        columns = (wanted & counted).flatten(1).float()
        # Counts below 2^24 are exact in float32, and a strip has far fewer pixels.
        product = (rows @ columns.T).double()
        both = product if both is None else both + product
        mine = mine.to(rows.device) + rows.sum(dim=1).double()
        theirs = theirs.to(rows.device) + columns.sum(dim=1).double()
    assert both is not None
    return both / (mine[:, None] + theirs[None] - both).clamp(min=1)


def classes_in(gt_labels: Tensor) -> Tensor:
    """The classes present in a label map (H, W), -1 ignored: (M,) int64, ascending."""
    return torch.bincount(gt_labels.flatten().long() - VOID)[1:].nonzero().flatten()


def _truth_of_classes(gt_labels: Tensor, present: Tensor, ignored_count: bool) -> TruthOf:
    """One true mask a class; ignored pixels count as background, or not at all."""

    def rows(first: int, last: int) -> tuple[Tensor, Tensor]:
        labels = gt_labels[first:last]
        counted = torch.ones_like(labels, dtype=torch.bool) if ignored_count else labels != VOID
        return labels[None] == present[:, None, None], counted

    return rows


def oracle_scores(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> Tensor:
    """What a perfect stage two would say: (N, K) float32, IoU of mask and class, L1-normalised over classes.

    gt_labels: (H, W), -1 ignored, of any size; the masks are resized to it. All pixels count, ignored ones
    too (they belong to no class). A mask that meets no class keeps a row of zeros. The label map follows as
    for any region scores: arg max over k of sum_n score[n, k] x mask[n], VOID where that is 0
    (`oracle_labels`). This is the oracle of the published zero-shot mask classification baseline.
    """
    gt_labels = _fitting(proposals, gt_labels, num_classes)
    present = classes_in(gt_labels)
    scores = torch.zeros(len(proposals), num_classes, dtype=torch.float64, device=gt_labels.device)
    truth = _truth_of_classes(gt_labels, present, ignored_count=True)
    scores[:, present] = mask_iou(proposals, truth, _size(gt_labels), threshold)
    return F.normalize(scores, p=1, dim=1).float()


def oracle_labels(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> Tensor:
    """The label map of `oracle_scores`, of the truth's size, (H, W) int32; its metrics are the ceiling of
    stage one.
    """
    scores = oracle_scores(proposals, gt_labels, num_classes, threshold)
    present = torch.nonzero(scores.sum(0) > 0).flatten()
    labels = torch.full(_size(gt_labels), VOID, dtype=torch.int32, device=scores.device)
    if len(present) == 0:
        return labels
    resizer = RowResizer(proposals.size_hw, _size(gt_labels))
    for first, last in strips(max(len(present), len(proposals)), _size(gt_labels)):
        maps = mix_strip(scores[:, present], proposals.masks, resizer, first, last)
        best, winner = maps.max(dim=0)
        labels[first:last] = torch.where(best > 0, present[winner], VOID).int()
    return labels


def best_ious(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The M classes present, int64, and the IoU of the best proposal with the region of each, float64.

    gt_labels: (H, W), -1 ignored, of any size; the masks are resized to it. Ignored pixels count for nobody.

    Raises:
        LabelError: labels that do not fit.
    """
    gt_labels = _fitting(proposals, gt_labels, num_classes)
    classes = classes_in(gt_labels)
    truth = _truth_of_classes(gt_labels, classes, ignored_count=False)
    return classes, _best(proposals, truth, len(classes), _size(gt_labels), threshold)


def _best(found: Proposals, truth: TruthOf, count: int, size_hw: tuple[int, int], threshold: float) -> Tensor:
    """(count,) float64: the largest IoU of any proposal with each of `count` true masks."""
    if count == 0 or len(found) == 0:
        return torch.zeros(count, dtype=torch.float64, device=found.masks.device)
    return mask_iou(found, truth, size_hw, threshold).amax(dim=0)


@dataclass(frozen=True)
class Recall:
    """Over a set of true masks, in percent, None when there are none.

    recall_50, recall_75: masks that some proposal meets with IoU of at least 0.5, 0.75; mean_best_iou: the
    mean IoU of the best proposal. One proposal may serve several masks.
    """

    masks: int
    recall_50: float | None
    recall_75: float | None
    mean_best_iou: float | None


class ProposalRecall:
    """Collects the best IoU of each true mask over a data set; two collections can be merged.

    A true mask is the region of one class in one image, or one instance where instances are given. Ignored
    pixels count for nobody: a proposal may cover them freely.
    """

    def __init__(self, num_classes: int, threshold: float = 0.5) -> None:
        self.num_classes = num_classes
        self.threshold = threshold
        # Masks, hits at .5, hits at .75, sum of best IoU.
        self.sums: NDArray[np.float64] = np.zeros((num_classes, 4))

    def update(
        self,
        proposals: Proposals,
        gt_labels: Tensor,
        instances: Tensor | None = None,
        instance_classes: Tensor | None = None,
    ) -> None:
        """Judge the proposals of one image, whose masks may have another size than the truth.

        gt_labels: (H, W) integers, -1 ignored; instances: (M, H, W) bool with instance_classes (M,) int64,
        judged in place of the class regions; instances without a pixel that counts are skipped.

        Raises:
            LabelError: sizes or labels that do not fit.
        """
        if instances is None:
            classes, best = best_ious(proposals, gt_labels, self.num_classes, self.threshold)
        else:
            gt_labels = _fitting(proposals, gt_labels, self.num_classes)
            classes, truth = self._instances(gt_labels, instances, instance_classes)
            best = _best(proposals, truth, len(classes), _size(gt_labels), self.threshold)
        if len(classes) == 0:
            return
        hits = [(best >= least).double() for least in (0.5, 0.75)]
        rows = torch.stack([torch.ones_like(best), *hits, best], dim=1)
        np.add.at(self.sums, classes.cpu().numpy(), rows.cpu().numpy())

    def _instances(
        self, gt_labels: Tensor, instances: Tensor, instance_classes: Tensor | None
    ) -> tuple[Tensor, TruthOf]:
        if instance_classes is None or instance_classes.shape != (len(instances),):
            given = None if instance_classes is None else tuple(instance_classes.shape)
            raise LabelError(
                f"ProposalRecall: expected a class for each of {len(instances)} instances, got {given}."
            )
        if instances.shape[1:] != gt_labels.shape:
            raise LabelError(
                f"ProposalRecall: instances {tuple(instances.shape[1:])}, labels {tuple(gt_labels.shape)}."
            )
        if len(instances) and not (instance_classes.min() >= 0 and instance_classes.max() < self.num_classes):
            raise LabelError(f"ProposalRecall: instance classes must lie in 0..{self.num_classes - 1}.")
        truth = instances.to(gt_labels.device).bool()
        kept = (truth & (gt_labels != VOID)).flatten(1).any(dim=1)
        truth = truth[kept]

        def rows(first: int, last: int) -> tuple[Tensor, Tensor]:
            return truth[:, first:last], gt_labels[first:last] != VOID

        return instance_classes.to(gt_labels.device)[kept].long(), rows

    def merge(self, other: ProposalRecall) -> None:
        """Add what another collection (of another process) has seen.

        Raises:
            LabelError: the numbers of classes differ.
        """
        if other.num_classes != self.num_classes:
            raise LabelError(
                f"ProposalRecall.merge: {self.num_classes} classes here, {other.num_classes} there."
            )
        self.sums += other.sums

    def over(self, members: NDArray[Any] | None = None) -> Recall:
        """The recall over the masks of some classes: members (K,) bool, or None for all."""
        chosen = self.sums if members is None else self.sums[np.asarray(members, bool)]
        masks, half, three_quarters, total = (float(value) for value in chosen.sum(axis=0))
        if masks == 0:
            return Recall(0, None, None, None)
        return Recall(int(masks), 100 * half / masks, 100 * three_quarters / masks, 100 * total / masks)

    def summary(
        self, vocabulary: Vocabulary, groups: dict[str, NDArray[Any]] | None = None
    ) -> dict[str, Recall]:
        """ "all", "seen" and "unseen" (where flags are known), then any further groups: name -> (K,) bool."""
        out = {"all": self.over()}
        if vocabulary.seen is not None:
            seen = np.array(vocabulary.seen, bool)
            out |= {"seen": self.over(seen), "unseen": self.over(~seen)}
        return out | {name: self.over(members) for name, members in (groups or {}).items()}


def _fitting(proposals: Proposals, gt_labels: Tensor, num_classes: int) -> Tensor:
    """The labels on the masks' device, checked against them."""
    if gt_labels.ndim != 2 or gt_labels.numel() == 0:
        raise LabelError(f"Ground truth: expected labels (H, W), got {tuple(gt_labels.shape)}.")
    if int(gt_labels.min()) < VOID or int(gt_labels.max()) >= num_classes:
        raise LabelError(
            f"Ground truth: expected labels {VOID}..{num_classes - 1}, got {int(gt_labels.min())}.."
            f"{int(gt_labels.max())}."
        )
    return gt_labels.to(proposals.masks.device)


def _size(labels: Tensor) -> tuple[int, int]:
    return labels.shape[0], labels.shape[1]
