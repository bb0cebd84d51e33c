"""Evaluation of several systems in one pass: evidence is gathered once a photo and merged once a system."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.data.prefetch import read_ahead
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.engine.memory import of_one_photo
from twostage.engine.signals import StopSignals, TrainingInterrupted
from twostage.errors import TwostageError
from twostage.evaluation.metrics import Metrics, compute
from twostage.evaluation.recall import Recall, oracle_labels
from twostage.evaluation.tally import Tally, Unfinished
from twostage.interfaces import Ensemble
from twostage.progress import Progress
from twostage.segmenter import Given, Segmenter, Words
from twostage.types import Evidence, Proposals, Segmentation
from twostage.views import View

logger = logging.getLogger(__name__)

ORACLE_CLASSES = "oracle classes"
"""Stage one's masks, named by the ground truth: the ceiling of stage one."""
ORACLE_MASKS = "oracle masks"
"""The ground truth's masks, named by CLIP on crops: the ceiling of stage two."""

Seen = Callable[[Sample, dict[str, Segmentation]], None]
"""Called with each photo and its label maps, for pictures."""


@dataclass
class Outcome:
    """Numbers of one data set: systems by name, recall of the proposals by group, photos that were counted,
    seconds; failed: photos that were left out, with the reason.
    """

    metrics: dict[str, Metrics]
    recall: dict[str, Recall] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0
    failed: tuple[str, ...] = ()


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    words: Words,
    systems: Mapping[str, Ensemble],
    max_images: int = 0,
    on_image: Seen | None = None,
    progress_seconds: float = 10.0,
    skip_broken: bool = False,
    unfinished: Unfinished | None = None,
) -> Outcome:
    """Measure every system on a data set; photos are shared among the processes of a distributed run.

    systems: name -> ensemble over the segmenter's evidence; the two oracle names may be added with any
    ensemble that weighs regions alone. max_images: 0 takes all. Seen and unseen are reported by the flags of
    the data set, or where it has none by those of `words`, which the ensembles follow; named groups of
    classes by its `subsets`, where it has that attribute (name -> positions in the vocabulary).
    skip_broken: photos that cannot be read or looked at are left out and listed, in place of an error.
    unfinished: keeps this process's counts in case that it is stopped, and has those of one that was.

    Raises:
        TwostageError: no photos, not one that could be evaluated, or without skip_broken a photo that cannot
            be read or has no ground truth (named).
        TrainingInterrupted: a signal asked to stop; only where `unfinished` keeps what was counted.
    """
    total = min(len(dataset), max_images) if max_images else len(dataset)
    if total == 0:
        raise TwostageError(f"{dataset.name} has no photos to evaluate.")
    mine = range(distributed.rank(), total, distributed.world_size())
    fresh = Tally.of(systems, len(words.vocabulary))
    tally = fresh if unfinished is None else unfinished.taken_up(fresh)
    left = mine[tally.done :]
    progress = Progress(logger, dataset.name, len(left), seconds=progress_seconds)

    count = partial(_count, segmenter, words, systems, tally, skip_broken, on_image)
    with closing(read_ahead(dataset.__getitem__, left)) as readings:
        if unfinished is None:
            for done, (_, reading) in enumerate(readings, start=1):
                count(reading)
                progress.at(done)
        else:
            _counting(count, readings, tally, unfinished, progress, len(mine))
    return _outcome(segmenter, dataset, words, tally, total, progress.elapsed)


def _count(
    segmenter: Segmenter,
    words: Words,
    systems: Mapping[str, Ensemble],
    tally: Tally,
    skip_broken: bool,
    on_image: Seen | None,
    reading: Future[Sample],
) -> None:
    """One photo more in the tally; one that fails halfway is not counted at all."""
    photo = tally.empty()
    photo.done = 1
    try:
        sample = reading.result()
        shown = _one(segmenter, sample, words, systems, photo)
    except Exception as error:
        if not skip_broken or not of_one_photo(error):
            raise
        logger.warning("Left out: %s", error)
        tally.leave_out(str(error))
        return
    tally.merge(photo)
    if on_image is not None:
        on_image(sample, shown)


def _counting(
    count: Callable[[Future[Sample]], None],
    readings: Iterable[tuple[int, Future[Sample]]],
    tally: Tally,
    unfinished: Unfinished,
    progress: Progress,
    mine: int,
) -> None:
    """Counts the photos; the tally is kept now and then, at an error, and where a signal stops it."""
    with StopSignals() as stop:
        try:
            for done, (_, reading) in enumerate(readings, start=1):
                count(reading)
                progress.at(done)
                if stop.requested:
                    break
                unfinished.keep(tally, progress.elapsed)
        except Exception:
            unfinished.keep(tally, progress.elapsed, now=True)
            raise
    unfinished.keep(tally, progress.elapsed, now=True)
    if stop.requested and tally.done < mine:
        raise TrainingInterrupted(
            f"Interrupted: the counts of {tally.done} of {mine} photos are saved in {unfinished.path}. Go on "
            "with TEST.RESUME True.",
            128 + stop.requested,
        )


def _outcome(
    segmenter: Segmenter, dataset: SegmentationDataset, words: Words, tally: Tally, total: int, seconds: float
) -> Outcome:
    merged = _gathered(tally)
    if len(merged.failed) == total:
        raise TwostageError(
            f"{dataset.name}: not one of {total} photos could be evaluated; the first: {merged.failed[0]}"
        )
    judged = dataset.vocabulary if dataset.vocabulary.seen is not None else words.vocabulary
    groups = getattr(dataset, "subsets", None)
    metrics = {name: compute(matrix, judged, groups) for name, matrix in merged.confusions.items()}
    recall = merged.recall.summary(judged) if segmenter.proposals is not None else {}
    images, seconds = total - len(merged.failed), merged.seconds + seconds
    return Outcome(metrics, recall, images, seconds, tuple(merged.failed))


def _one(
    segmenter: Segmenter, sample: Sample, words: Words, systems: Mapping[str, Ensemble], tally: Tally
) -> dict[str, Segmentation]:
    if sample.labels is None:
        raise TwostageError(
            f"{sample.source or sample.image_id} has no ground truth, so it cannot be evaluated."
        )
    given = _given(segmenter, sample)
    masks = None if given is None else [given(segmenter.whole(sample.image))]
    evidence = segmenter.gather([sample.image], words, masks)[0]
    shown = _with_all_views(segmenter, sample, words, systems, evidence, given)
    for name, ensemble in systems.items():
        if name == ORACLE_CLASSES:
            shown[name] = _oracle_classes(evidence, sample.labels, len(words.vocabulary))
        elif name == ORACLE_MASKS:
            truth = true_masks(sample.labels, segmenter.size.resize(sample.image).shape[-2:])
            crops_only = replace(segmenter, dense=None)  # the dense map of this photo is known already
            known = replace(crops_only.gather([sample.image], words, [truth])[0], dense=evidence.dense)
            shown[name] = ensemble.merge(known, words.vocabulary)
        elif name not in shown:
            shown[name] = ensemble.merge(evidence, words.vocabulary)
        tally.confusions[name].update(
            shown[name].labels.cpu(), sample.labels, sample.source or sample.image_id
        )
    if evidence.proposals is not None:
        tally.recall.update(evidence.proposals, sample.labels)
    return shown


def _with_all_views(
    segmenter: Segmenter,
    sample: Sample,
    words: Words,
    systems: Mapping[str, Ensemble],
    known: Evidence,
    given: Given | None,
) -> dict[str, Segmentation]:
    """What the systems make of all views, where there is more than one or a random field.

    The oracles are left out: they are ceilings of one look at the whole photo.
    """
    asked = {name: one for name, one in systems.items() if name not in (ORACLE_CLASSES, ORACLE_MASKS)}
    if segmenter.test_time.plain or not asked:
        return {}
    return segmenter.label(sample.image, words, asked, known, given)


def _given(segmenter: Segmenter, sample: Sample) -> Given | None:
    """The masks of a stage one that does not look at the photo: the truth itself, or stored ones."""
    cut = getattr(segmenter.proposals, "propose_from_labels", None)
    labels = sample.labels
    if cut is None or labels is None:
        return segmenter.stored(sample.image, sample.image_id)

    def of(view: View) -> Proposals:
        found: Proposals = cut(view.look(labels_at(labels, view.size_hw)))
        return found

    return of


def true_masks(labels: Tensor, size_hw: Iterable[int]) -> Proposals:
    """One mask a class present, (M, H, W) bool at the size where photos are looked at."""
    small = labels_at(labels, size_hw)
    present = torch.unique(small)
    present = present[present >= 0]
    return Proposals(small[None] == present[:, None, None], torch.ones(len(present)), source="ground truth")


def labels_at(labels: Tensor, size_hw: Iterable[int]) -> Tensor:
    """A label map (H, W) at another size, (h, w) int32, by nearest neighbour."""
    height, width = size_hw
    return F.interpolate(labels[None, None].float(), size=(height, width), mode="nearest-exact")[0, 0].int()


def _oracle_classes(evidence: Evidence, labels: Tensor, count: int) -> Segmentation:
    assert evidence.proposals is not None
    return Segmentation(oracle_labels(evidence.proposals, labels, count))


def _gathered(tally: Tally) -> Tally:
    """The sums over all processes, on every process."""
    total = tally.empty()
    for one in distributed.all_gather_object(tally):
        total.merge(one)
    return total
