"""Evaluation of several systems in one pass: evidence is gathered once a photo and merged once a system."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.data.prefetch import prefetch
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.errors import TwostageError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import Metrics, compute
from twostage.evaluation.recall import ProposalRecall, Recall, oracle_labels
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
    """Numbers of one data set: systems by name, recall of the proposals by group, photos, seconds."""

    metrics: dict[str, Metrics]
    recall: dict[str, Recall] = field(default_factory=dict)
    images: int = 0
    seconds: float = 0.0


@dataclass
class _Tally:
    confusions: dict[str, ConfusionMatrix]
    recall: ProposalRecall


def evaluate(
    segmenter: Segmenter,
    dataset: SegmentationDataset,
    words: Words,
    systems: Mapping[str, Ensemble],
    max_images: int = 0,
    on_image: Seen | None = None,
    progress_seconds: float = 10.0,
) -> Outcome:
    """Measure every system on a data set; photos are shared among the processes of a distributed run.

    systems: name -> ensemble over the segmenter's evidence; the two oracle names may be added with any
    ensemble that weighs regions alone. max_images: 0 takes all. Seen and unseen are reported by the flags of
    the data set, or where it has none by those of `words`, which the ensembles follow; named groups of
    classes by its `subsets`, where it has that attribute (name -> positions in the vocabulary).

    Raises:
        TwostageError: no photos, or a photo without ground truth (named).
    """
    total = min(len(dataset), max_images) if max_images else len(dataset)
    if total == 0:
        raise TwostageError(f"{dataset.name} has no photos to evaluate.")
    mine = range(distributed.rank(), total, distributed.world_size())
    count = len(words.vocabulary)
    tally = _Tally({name: ConfusionMatrix(count) for name in systems}, ProposalRecall(count))
    progress = Progress(logger, dataset.name, len(mine), seconds=progress_seconds)
    for done, sample in enumerate(prefetch(dataset, mine), start=1):
        shown = _one(segmenter, sample, words, systems, tally)
        if on_image is not None:
            on_image(sample, shown)
        progress.at(done)
    merged = _gathered(tally)
    judged = dataset.vocabulary if dataset.vocabulary.seen is not None else words.vocabulary
    groups = getattr(dataset, "subsets", None)
    metrics = {name: compute(matrix, judged, groups) for name, matrix in merged.confusions.items()}
    recall = merged.recall.summary(judged) if segmenter.proposals is not None else {}
    return Outcome(metrics, recall, total, progress.elapsed)


def _one(
    segmenter: Segmenter, sample: Sample, words: Words, systems: Mapping[str, Ensemble], tally: _Tally
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


def _gathered(tally: _Tally) -> _Tally:
    """The sums over all processes, on every process."""
    parts: list[_Tally] = distributed.all_gather_object(tally)
    first = parts[0]
    for other in parts[1:]:
        for name, matrix in other.confusions.items():
            first.confusions[name].merge(matrix)
        first.recall.merge(other.recall)
    return first
