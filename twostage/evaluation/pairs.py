"""One-word segmentation measured: every photo is asked for each of its classes, one pair at a time."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twostage.data.folds import Split
from twostage.data.prefetch import read_ahead
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.engine.memory import of_one_photo
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
    """Numbers by rule (PairRule.names), photos, pairs and seconds of one data set; failed: photos that were
    left out, with the reason.
    """

    metrics: dict[str, PairMetrics]
    images: int
    pairs: int
    seconds: float
    failed: tuple[str, ...] = ()


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
    skip_broken: bool = False,
) -> PairOutcome:
    """Asks `head` for every class that a photo shows and that takes part; photos are shared among processes.

    text: of the data set's whole vocabulary; size: at which photos are looked at, answers are judged at the
    labels' own; max_images: 0 takes all; skip_broken: photos that cannot be read or looked at are left out.

    Raises:
        TwostageError: no photos, or without skip_broken one that cannot be read or has no ground truth
            (named); not one that could be evaluated.
    """
    total = min(len(dataset), max_images) if max_images else len(dataset)
    if total == 0:
        raise TwostageError(f"{dataset.name} has no photos to evaluate.")
    mine = range(distributed.rank(), total, distributed.world_size())
    counts = {name: PairCounts(len(dataset.vocabulary)) for name in rule.names}
    started = spoken = time.monotonic()
    failed: list[str] = []
    for done, (_, reading) in enumerate(read_ahead(dataset.__getitem__, mine), start=1):
        photo = {name: PairCounts(len(dataset.vocabulary)) for name in rule.names}
        try:
            _one(head, reading.result(), text, split, rule, size, photo)
        except Exception as error:
            if not skip_broken or not of_one_photo(error):
                raise
            logger.warning("Left out: %s", error)
            failed.append(str(error))
        else:
            _add(counts, photo)
        if time.monotonic() - spoken > progress_seconds:
            spoken = time.monotonic()
            left = (len(mine) - done) * (spoken - started) / done
            logger.info("%s: %d of %d photos, %.0f s left", dataset.name, done, len(mine), left)
    seconds = time.monotonic() - started
    return _outcome(dataset, split, counts, failed, total, seconds)


def _outcome(
    dataset: SegmentationDataset,
    split: Split,
    counts: dict[str, PairCounts],
    failed: list[str],
    total: int,
    seconds: float,
) -> PairOutcome:
    (merged, failed), *others = distributed.all_gather_object((counts, failed))
    for other, more in others:
        _add(merged, other)
        failed += more
    if len(failed) == total:
        raise TwostageError(
            f"{dataset.name}: not one of {total} photos could be evaluated; the first: {failed[0]}"
        )
    first = next(iter(merged.values()))
    metrics = {name: compute_pairs(own, dataset.vocabulary, split) for name, own in merged.items()}
    return PairOutcome(metrics, total - len(failed), int(first.pairs.sum()), seconds, tuple(failed))


def _add(counts: dict[str, PairCounts], more: dict[str, PairCounts]) -> None:
    for name, own in more.items():
        counts[name].merge(own)


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
