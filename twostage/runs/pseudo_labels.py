"""Labelling training photos with a model's own predictions, one PNG a photo, and counting what came of it.

Photos are shared among the processes of a run; a photo whose file is there is finished.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.builder import Builder
from twostage.config import Config, SelfTrainingConfig
from twostage.data.prefetch import prefetch
from twostage.data.pseudo import (
    FillRule,
    PseudoLabelled,
    fill,
    known_labels,
    label_path,
    labelled,
    write_labels,
)
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.engine.signals import StopSignals, TrainingInterrupted
from twostage.errors import TwostageError
from twostage.progress import Progress
from twostage.segmenter import Segmenter, Words
from twostage.types import VOID
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def label_photos(config: Config, dataset: SegmentationDataset, indices: Sequence[int], folder: Path) -> None:
    """Labels these samples of `dataset` with the system of `config` (MODEL.WEIGHTS) into `folder`; files that
    are there stay as they are. Every process of a run calls it.

    Raises:
        TrainingInterrupted: a signal asked to stop; finished photos stay.
        TwostageError: the ensemble gives no class maps.
    """
    finished = labelled(folder)
    missing = [i for i in indices[distributed.rank() :: distributed.world_size()] if i not in finished]
    distributed.barrier()  # nobody writes before everybody has looked
    if finished:
        logger.info("Pseudo labels: %d of %d photos are there already", len(finished), len(indices))
    if missing:
        labeller = _Labeller.of(config, dataset)
        logger.info("Pseudo labels: %d photos of %s to label", len(missing), dataset.name)
        _label(labeller, dataset, missing, folder)
    distributed.barrier()


def kept_flags(options: SelfTrainingConfig, vocabulary: Vocabulary) -> tuple[bool, ...]:
    """The classes whose ground truth stays: the seen ones (all where no flags are known), or none."""
    if not options.keep_seen:
        return (False,) * len(vocabulary)
    return vocabulary.seen or (True,) * len(vocabulary)


def fill_rule(options: SelfTrainingConfig) -> FillRule:
    """How SELF_TRAINING says that open pixels are filled."""
    return FillRule(**{field.name: getattr(options, field.name) for field in dataclasses.fields(FillRule)})


@dataclasses.dataclass(frozen=True)
class _Labeller:
    """The system that labels, the words it knows, which classes keep their ground truth (K,), the rule."""

    segmenter: Segmenter
    words: Words
    kept: Tensor
    rule: FillRule

    @classmethod
    def of(cls, config: Config, dataset: SegmentationDataset) -> _Labeller:
        options = {**config.ensemble.options, "scores": True}
        ensemble = dataclasses.replace(config.ensemble, options=options)
        builder = Builder(dataclasses.replace(config, ensemble=ensemble))
        vocabulary = dataset.vocabulary
        kept = torch.tensor(kept_flags(config.self_training, vocabulary))
        return cls(builder.segmenter(), builder.words(vocabulary), kept, fill_rule(config.self_training))

    def label(self, sample: Sample) -> Tensor:
        """(H, W) int32. Ground truth that is not to be kept is gone before the labels are made."""
        known = None if sample.labels is None else known_labels(sample.labels, self.kept)
        found = self.segmenter.segment([sample.image], self.words, [sample.image_id])[0]
        if found.scores is None:
            raise TwostageError(
                "ENSEMBLE: pseudo labels are made from class maps, but this ensemble returns none "
                "(Segmentation.scores): it needs an option `scores` that fills them."
            )
        made = fill(known, found.scores, self.kept, self.rule)
        silent = (found.labels == VOID).cpu()  # where the ensemble itself has no opinion
        return made.masked_fill(silent if known is None else silent & (known == VOID), VOID)


def _label(labeller: _Labeller, dataset: SegmentationDataset, missing: Sequence[int], folder: Path) -> None:
    classes = len(dataset.vocabulary)
    progress = Progress(logger, "Pseudo labels", len(missing))
    with StopSignals() as stop:
        for done, sample in enumerate(prefetch(dataset, missing), start=1):
            labels = labeller.label(sample)
            write_labels(label_path(folder, missing[done - 1], sample.image_id), labels, classes)
            if stop.requested:
                raise TrainingInterrupted(
                    f"Interrupted: {done} photos more are labelled in {folder}. Go on with --resume.",
                    128 + stop.requested,
                )
            progress.at(done)


def count(dataset: PseudoLabelled, seen: Sequence[bool]) -> dict[str, Any]:
    """What the labels hold, summed over all processes: plain data for the report.

    seen: flags of the classes whose ground truth was kept. "void": pixels without label; "classes": for each
    class its pixels `kept` from ground truth and `filled` by the model, and, for the report alone and known
    only where the data set labels other classes too, its `true` pixels among the open ones and how many of
    those are `right`. The ground truth of other classes is read here, after the labels are on disk, and
    nowhere else.
    """
    classes = len(dataset.vocabulary)
    sums = torch.zeros(4, classes, dtype=torch.int64)
    void = 0
    flags = torch.tensor([*seen])
    mine = range(distributed.rank(), len(dataset), distributed.world_size())
    progress = Progress(logger, "Pseudo labels: counted", len(mine))
    for done, index in enumerate(mine, start=1):
        progress.at(done)
        sample, truth = dataset.with_truth(index)
        assert sample.labels is not None
        labels, void = sample.labels, void + int((sample.labels == VOID).sum())
        own = torch.full_like(labels, VOID) if truth is None else truth
        opened = known_labels(own, flags) == VOID
        sums[0] += _histogram(labels[~opened], classes)
        sums[1] += _histogram(labels[opened], classes)
        sums[2] += _histogram(own[opened], classes)
        sums[3] += _histogram(own[opened & (labels == own)], classes)
    parts = distributed.all_gather_object((sums, void))
    total = torch.stack([part[0] for part in parts]).sum(dim=0).tolist()
    rows = [
        {
            "name": name,
            "seen": flag,
            "kept": total[0][k],
            "filled": total[1][k],
            "true": total[2][k],
            "right": total[3][k],
        }
        for k, (name, flag) in enumerate(zip(dataset.vocabulary.shown, seen, strict=True))
    ]
    return {"photos": len(dataset), "void": sum(part[1] for part in parts), "classes": rows}


def _histogram(labels: Tensor, classes: int) -> Tensor:
    """(K,) int64 pixels of each class; VOID counts nowhere."""
    return torch.bincount(labels.long() + 1, minlength=classes + 1)[1:]
