"""One-word segmentation measured: every photo is asked for each of its classes, one pair at a time."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twostage.data.folds import Split
from twostage.data.prefetch import prefetch
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.errors import TwostageError
from twostage.evaluation.binary import PairCounts, PairMetrics, compute_pairs
from twostage.interfaces import DenseHead
from twostage.types import DenseScores, PixelScores, TextBank
from twostage.views import TestSize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairRule:
    """When a pixel counts as found. thresholds: of logits, one result for each; argmax: where the class leads
    all that take part, instead; void_is_background: pixels without a label are no class's.
    """

    thresholds: tuple[float, ...] = (0.0,)
    argmax: bool = False
    void_is_background: bool = False

    def __post_init__(self) -> None:
        if not self.argmax and (not self.thresholds or len({*self.thresholds}) < len(self.thresholds)):
            raise TwostageError(
                f"CLSCLIP.THRESHOLDS: expected one or more different logits, got {list(self.thresholds)}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """What each result is called behind the head's name; a lone threshold of 0 needs no word."""
        if self.argmax:
            return (" argmax",)
        if self.thresholds == (0.0,):
            return ("",)
        return tuple(f" > {threshold:g}" for threshold in self.thresholds)


@dataclass(frozen=True)
class PairOutcome:
    """Numbers by rule (PairRule.names), photos, pairs and seconds of one data set."""

    metrics: dict[str, PairMetrics]
    images: int
    pairs: int
    seconds: float


@torch.inference_mode()
def evaluate_pairs(
    head: DenseHead,
    dataset: SegmentationDataset,
    text: TextBank,
    split: Split,
    rule: PairRule,
    size: TestSize,
    max_images: int = 0,
    progress_seconds: float = 10.0,
) -> PairOutcome:
    """Asks `head` for every class that a photo shows and that takes part; photos are shared among processes.

    text: of the data set's whole vocabulary; size: at which photos are looked at, answers are judged at the
    labels' own; max_images: 0 takes all.

    Raises:
        TwostageError: no photos, or one without ground truth (named).
    """
    total = min(len(dataset), max_images) if max_images else len(dataset)
    if total == 0:
        raise TwostageError(f"{dataset.name} has no photos to evaluate.")
    mine = range(distributed.rank(), total, distributed.world_size())
    counts = {name: PairCounts(len(dataset.vocabulary)) for name in rule.names}
    started = spoken = time.monotonic()
    for done, sample in enumerate(prefetch(dataset, mine), start=1):
        _one(head, sample, text, split, rule, size, counts)
        if time.monotonic() - spoken > progress_seconds:
            spoken = time.monotonic()
            left = (len(mine) - done) * (spoken - started) / done
            logger.info("%s: %d of %d photos, %.0f s left", dataset.name, done, len(mine), left)
    merged, *others = distributed.all_gather_object(counts)
    for other in others:
        for name, own in other.items():
            merged[name].merge(own)
    first = next(iter(merged.values()))
    metrics = {name: compute_pairs(own, dataset.vocabulary, split) for name, own in merged.items()}
    return PairOutcome(metrics, total, int(first.pairs.sum()), time.monotonic() - started)


def _one(
    head: DenseHead,
    sample: Sample,
    text: TextBank,
    split: Split,
    rule: PairRule,
    size: TestSize,
    counts: dict[str, PairCounts],
) -> None:
    if sample.labels is None:
        raise TwostageError(
            f"{sample.source or sample.image_id} has no ground truth, so it cannot be evaluated."
        )
    part = split.taking_part
    present = [label for label in torch.unique(sample.labels).tolist() if label in set(part)]
    if not present:
        return
    asked = list(part) if rule.argmax else present
    [scores] = head.predict([size.resize(sample.image)], text.subset(asked))
    full = _enlarged(scores, (sample.labels.shape[0], sample.labels.shape[1]))
    best = full.argmax(dim=0) if rule.argmax else None
    for label in present:
        row = asked.index(label)
        answers = [best == row] if best is not None else [full[row] > edge for edge in rule.thresholds]
        for own, found in zip(counts.values(), answers, strict=True):
            own.update(label, found, sample.labels, rule.void_is_background)


def _enlarged(scores: DenseScores, size_hw: tuple[int, int]) -> Tensor:
    """(K, H, W) float32 on the CPU, bilinear. Cells that reach beyond the photo are cut off before."""
    logits = scores.logits.float().cpu()[None]
    if isinstance(scores, PixelScores):
        size = (logits.shape[-2] * scores.stride, logits.shape[-1] * scores.stride)
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        logits = logits[..., : scores.image_hw[0], : scores.image_hw[1]]
    return functional.interpolate(logits, size_hw, mode="bilinear", align_corners=False)[0]
