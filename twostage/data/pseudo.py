"""Pseudo labels: ground truth of the seen classes kept, everything else labelled by a model; and data made of
them.

K classes, H x W pixels of one image, P pixels that are open. Ground truth of an unseen class is replaced by
VOID before anything else looks at it (`known_labels`), so it cannot reach a label: under the zero-shot
protocol a pixel of an unseen class and an ignored pixel are the same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.data.image_io import read_label_png, write_label_png
from twostage.data.sample import Sample, SegmentationDataset
from twostage.types import VOID


@dataclass(frozen=True)
class FillRule:
    """How a pixel without ground truth of a seen class gets its label.

    prior: only unseen classes may win, for a seen one would have been labelled; else every class may;
    score: the probability of the winner that reject_threshold speaks of, "share", its part of what all
    classes have at the pixel, "posterior", its part of what the classes that may win have, or "softmax",
    that of the class map over all classes (nearly flat where the map is made of probabilities: the winner
    of 171 classes seldom exceeds 0.02); reject_threshold: a winner below it leaves the pixel void; beaten:
    with prior, what a pixel becomes where a seen class has more than the winner, "keep" the winner or "void".
    """

    prior: bool = True
    score: Literal["share", "posterior", "softmax"] = "share"
    reject_threshold: float = 0.0
    beaten: Literal["keep", "void"] = "keep"


def known_labels(labels: Tensor, seen: Tensor) -> Tensor:
    """labels (H, W) with indices or VOID, seen (K,) bool -> (H, W) int32: VOID where the class is unseen."""
    table = torch.where(seen, torch.arange(len(seen)), VOID)
    return torch.cat([table, torch.tensor([VOID])])[labels.long()].to(torch.int32)


def fill(known: Tensor | None, class_map: Tensor, seen: Tensor, rule: FillRule) -> Tensor:
    """(H, W) int32 labels: `known` where it speaks, and a class or VOID elsewhere.

    known: (H, W) int32 from `known_labels`, or None for an image without any ground truth, in which seen
    classes are as likely as others and therefore always compete; class_map: (K, H, W) float32 on any device,
    what each class has at each pixel; seen: (K,) bool. A pixel where no class that may win has anything is
    VOID.

    Raises:
        LabelError: shapes that differ, or a negative or non-finite class map where shares were asked for.
    """
    if class_map.shape[0] != len(seen) or (known is not None and known.shape != class_map.shape[1:]):
        raise LabelError(
            f"Pseudo labels: expected a class map of {len(seen)} classes and the size of the labels, got "
            f"{tuple(class_map.shape)}{'' if known is None else f' for labels of {tuple(known.shape)}'}."
        )
    open_pixels = torch.ones(class_map.shape[1:], dtype=torch.bool) if known is None else known == VOID
    values = class_map[:, open_pixels.to(class_map.device)].float()
    if not bool(torch.isfinite(values).all()) or (rule.score != "softmax" and bool((values < 0).any())):
        raise LabelError(
            "Pseudo labels: the ensemble's class map holds negative or non-finite numbers, of which no "
            "share can be taken. Use SELF_TRAINING.SCORE softmax for maps of logits."
        )
    may_win = ~seen if rule.prior and known is not None else torch.ones_like(seen)
    labels = torch.full(open_pixels.shape, VOID, dtype=torch.int32) if known is None else known.clone()
    if values.shape[1]:
        labels[open_pixels] = _winners(values, may_win.to(values.device), rule).cpu()
    return labels


def _winners(values: Tensor, may_win: Tensor, rule: FillRule) -> Tensor:
    """values (K, P), may_win (K,) bool -> (P,) int32."""
    best, place = values[may_win].max(dim=0)
    winner = may_win.nonzero()[:, 0][place].to(torch.int32)
    if rule.score == "softmax":
        probability = (best - values.logsumexp(dim=0)).exp()
    else:
        rivals = values if rule.score == "share" else values[may_win]
        probability = best / rivals.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
    void = probability < rule.reject_threshold
    if rule.score != "softmax":  # logits may well be zero; a share of nothing is no opinion
        void |= best <= 0
    if rule.beaten == "void" and not bool(may_win.all()):
        void |= values[~may_win].amax(dim=0) > best
    return winner.masked_fill(void, VOID)


def label_path(folder: str | Path, index: int, image_id: str) -> Path:
    """Where the label map of a sample lies; the index alone tells whether it is there."""
    return Path(folder) / f"{index:07d}_{image_id}.png"


def labelled(folder: str | Path) -> set[int]:
    """The indices of the samples whose label maps are there (files appear whole or not at all)."""
    return {int(path.name.split("_", 1)[0]) for path in Path(folder).glob("[0-9]*_*.png")}


def write_labels(path: Path, labels: Tensor, num_classes: int) -> None:
    """Writes labels (H, W) whole or not at all; void is 255, or 65535 where 255 may be a class."""
    write_label_png(path, labels, _void(num_classes))


def read_labels(path: Path, num_classes: int) -> Tensor:
    """(H, W) int32 with VOID, as written.

    Raises:
        ImageReadError: missing or broken. LabelError: a value that no class has.
    """
    stored = read_label_png(path)
    labels = torch.where(stored == _void(num_classes), VOID, stored)
    if int(labels.max()) >= num_classes:
        raise LabelError(
            f"{path}: value {int(labels.max())} stands for no class, there are {num_classes}. Remove the "
            "file, and run again with --resume: it is made anew."
        )
    return labels


def _void(num_classes: int) -> int:
    return 255 if num_classes <= 255 else 65535


class PseudoLabelled:
    """Some samples of a data set with their pseudo labels, every class trainable.

    dataset: where the images come from; folder: of the label maps; indices: which samples of `dataset`.
    """

    def __init__(self, dataset: SegmentationDataset, folder: str | Path, indices: Sequence[int]) -> None:
        self.name = f"{dataset.name} with pseudo labels"
        self.vocabulary = replace(dataset.vocabulary, seen=(True,) * len(dataset.vocabulary))
        self._dataset, self._folder, self._indices = dataset, Path(folder), indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        """The sample with its pseudo labels in place of its own.

        Raises:
            DataError: no label map, or one of another size than the image.
        """
        return self.with_truth(index)[0]

    def with_truth(self, index: int) -> tuple[Sample, Tensor | None]:
        """The same, and the data set's own labels, for reports."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} samples, there is no number {index}.")
        sample = self._dataset[self._indices[index]]
        path = label_path(self._folder, self._indices[index], sample.image_id)
        labels = read_labels(path, len(self.vocabulary))
        if labels.shape != sample.image.shape[1:]:
            raise LabelError(
                f"{path}: expected the size of the image {tuple(sample.image.shape[1:])}, got "
                f"{tuple(labels.shape)}. Remove the folder of labels and make it anew."
            )
        return replace(sample, labels=labels), sample.labels


def evenly(total: int, wanted: int) -> list[int]:
    """Positions of `wanted` out of `total` samples, evenly spread; all for 0 or too many."""
    count = total if wanted <= 0 or wanted >= total else wanted
    return [number * total // count for number in range(count)]
