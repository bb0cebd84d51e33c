"""How good stage one could be at best: do the masks cover what is there, whatever they are called?

Shapes: N proposals, M true masks, K classes. A soft mask is binarised strictly above the threshold (0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.ops.masks import binarise
from twostage.types import VOID, Proposals
from twostage.vocabulary import Vocabulary

# Pixels that one matrix product looks at: bounds the float copies of N masks, keeps counts exact in float32.
_CHUNK = 1 << 18


def mask_iou(first: Tensor, second: Tensor, counted: Tensor | None = None) -> Tensor:
    """Intersection over union of every pair.

    first: (N, H, W) bool; second: (M, H, W) bool; counted: (H, W) bool, the pixels that matter, or None.
    Returns (N, M) float64, 0 where both are empty.
    """
    rows, columns = first.flatten(1), second.flatten(1)
    keep = rows.new_ones(1, rows.shape[1]) if counted is None else counted.flatten()[None]
    # The last column of the product is the counted area of each row, for the price of one more mask.
    columns = torch.cat([columns & keep, keep])
    product = torch.zeros(len(rows), len(columns), dtype=torch.float64, device=first.device)
    for start in range(0, rows.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        product += (rows[:, part].float() @ columns[:, part].float().T).double()
    both, areas = product[:, :-1], columns[:-1].count_nonzero(dim=1)
    return both / (product[:, -1:] + areas - both).clamp(min=1)


def class_masks(gt_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The classes present in a label map (H, W), -1 ignored: (M,) int64, and their masks (M, H, W) bool."""
    present = torch.bincount(gt_labels.flatten().long() - VOID)[1:].nonzero().flatten()
    return present, gt_labels[None] == present[:, None, None]


def oracle_scores(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> Tensor:
    """What a perfect stage two would say: (N, K) float32, IoU of mask and class, L1-normalised over classes.

    All pixels count, ignored ones too (they belong to no class). A mask that meets no class keeps a row of
    zeros. The label map follows as for any region scores: arg max over k of sum_n score[n, k] x mask[n],
    VOID where that is 0 (`oracle_labels`). This is the oracle of the published zero-shot mask
    classification baseline.
    """
    gt_labels = _fitting(proposals, gt_labels, num_classes)
    present, truth = class_masks(gt_labels)
    scores = torch.zeros(len(proposals), num_classes, dtype=torch.float64, device=gt_labels.device)
    scores[:, present] = mask_iou(binarise(proposals.masks, threshold), truth)
    return F.normalize(scores, p=1, dim=1).float()


def oracle_labels(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> Tensor:
    """The label map of `oracle_scores`, (H, W) int32; its metrics are the ceiling of stage one."""
    scores = oracle_scores(proposals, gt_labels, num_classes, threshold)
    present = torch.nonzero(scores.sum(0) > 0).flatten()
    if len(present) == 0:
        return torch.full(proposals.size_hw, VOID, dtype=torch.int32, device=scores.device)
    maps = torch.einsum("nk,nhw->khw", scores[:, present], proposals.masks.float())
    best, winner = maps.max(dim=0)
    return torch.where(best > 0, present[winner], VOID).int()


def painted_labels(
    proposals: Proposals, gt_labels: Tensor, num_classes: int, threshold: float = 0.5
) -> Tensor:
    """A harder oracle, (H, W) int32: each binary mask takes the one class with which its IoU is largest.

    Where masks overlap the one with the larger IoU wins (the earlier one at a tie); pixels of no mask, and
    masks that meet no class, are VOID.
    """
    gt_labels = _fitting(proposals, gt_labels, num_classes)
    present, truth = class_masks(gt_labels)
    out = torch.full(proposals.size_hw, VOID, dtype=torch.int32, device=gt_labels.device)
    if len(present) == 0 or len(proposals) == 0:
        return out
    binary = binarise(proposals.masks, threshold)
    iou, choice = mask_iou(binary, truth).max(dim=1)
    for n in torch.argsort(iou, descending=True, stable=True).flip(0).tolist():
        if iou[n] > 0:
            out[binary[n]] = int(present[choice[n]])
    return out


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
        self.sums: NDArray[np.float64] = np.zeros(
            (num_classes, 4)
        )  # masks, hits at .5, hits at .75, sum of best IoU

    def update(
        self,
        proposals: Proposals,
        gt_labels: Tensor,
        instances: Tensor | None = None,
        instance_classes: Tensor | None = None,
    ) -> None:
        """Judge the proposals of one image.

        gt_labels: (H, W) integers, -1 ignored; instances: (M, H, W) bool with instance_classes (M,) int64,
        judged in place of the class regions; instances without a pixel that counts are skipped.

        Raises:
            LabelError: sizes or labels that do not fit.
        """
        gt_labels = _fitting(proposals, gt_labels, self.num_classes)
        if instances is None:
            classes, truth = class_masks(gt_labels)
        else:
            classes, truth = self._instances(gt_labels, instances, instance_classes)
        if len(truth) == 0:
            return
        iou = mask_iou(binarise(proposals.masks, self.threshold), truth, gt_labels != VOID)
        best = iou.amax(dim=0) if len(proposals) else iou.new_zeros(len(truth))
        rows = torch.stack(
            [torch.ones_like(best), (best >= 0.5).double(), (best >= 0.75).double(), best], dim=1
        )
        np.add.at(self.sums, classes.cpu().numpy(), rows.cpu().numpy())

    def _instances(
        self, gt_labels: Tensor, instances: Tensor, instance_classes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
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
        return instance_classes.to(gt_labels.device)[kept].long(), truth[kept]

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
    if gt_labels.shape != proposals.size_hw:
        raise LabelError(
            f"Proposals are {proposals.size_hw} and the ground truth {tuple(gt_labels.shape)}: "
            "resize the masks to the ground truth first."
        )
    if gt_labels.numel() and (int(gt_labels.min()) < VOID or int(gt_labels.max()) >= num_classes):
        raise LabelError(
            f"Ground truth: expected labels {VOID}..{num_classes - 1}, got {int(gt_labels.min())}.."
            f"{int(gt_labels.max())}."
        )
    return gt_labels.to(proposals.masks.device)
