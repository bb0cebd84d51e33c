"""Accuracy against time of several region classifiers: the same masks, the same words, the same ensemble.

Every photo is proposed once and then classified by all in turns, so that a change of the machine's load meets
all alike.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from twostage.builder import Builder
from twostage.config import Config, ConfigError, SlotConfig
from twostage.data.prefetch import prefetch
from twostage.data.sample import Sample, SegmentationDataset
from twostage.errors import TwostageError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.runner import labels_at
from twostage.interfaces import RegionClassifier
from twostage.progress import Progress
from twostage.runs.pareto_candidates import Candidate
from twostage.segmenter import Segmenter, Words
from twostage.test_time import TestTime
from twostage.types import Evidence, RegionScores, Segmentation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seconds:
    """Wall clock and processor time of this process, all its threads."""

    wall: float
    cpu: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)


@dataclass
class Runner:
    """One classifier and what is known of it so far. stage_two, merge: seconds over all photos; equal: pixels
    with the label that the first candidate gives; crops: masks that were cut out.
    """

    candidate: Candidate
    classifier: RegionClassifier
    confusion: ConfusionMatrix
    stage_two: Seconds = field(default_factory=lambda: Seconds(0, 0))
    merge: Seconds = field(default_factory=lambda: Seconds(0, 0))
    equal: int = 0
    crops: int = 0


@dataclass
class Measured:
    """All of it. before: seconds of stage one and the dense map over all photos; skipped: candidates that
    cannot work here, with the reason.
    """

    runners: list[Runner]
    words: Words
    device: torch.device
    images: int = 0
    pixels: int = 0
    before: Seconds = field(default_factory=lambda: Seconds(0, 0))
    skipped: dict[str, str] = field(default_factory=dict)


def exact(config: Config) -> Config:
    """The configuration with CLIP in float32, the yardstick's format, and without the classifier's slot."""
    clip = dataclasses.replace(config.clip, dtype="fp32")
    return dataclasses.replace(config, clip=clip, classifier=SlotConfig(""))


def measure(
    config: Config,
    dataset: SegmentationDataset,
    candidates: Sequence[Candidate],
    limit: int = 0,
    rounds: int = 1,
) -> Measured:
    """Run every candidate on every photo; the first one's labels are those that the others are compared with.

    limit: of photos, 0 for all; rounds: how often each photo is classified, of whose times the median counts.
    A candidate that nobody asked for and that cannot work with these masks or this tower is left out; the
    first photo's first turn, in which this shows, is not counted.

    Raises:
        TwostageError: no photos, no stage one, a photo without ground truth, or what a candidate refuses.
    """
    builder = Builder(exact(config))
    segmenter = dataclasses.replace(builder.segmenter(), test_time=TestTime())
    if segmenter.proposals is None:
        raise ConfigError(
            "PROPOSALS.NAME is empty, so there are no masks to classify: name a source of masks."
        )
    total = min(len(dataset), limit) if limit else len(dataset)
    if total == 0:
        raise TwostageError(f"{dataset.name} has no photos to measure on.")
    builders = {"fp32": builder}
    found = Measured([], builder.words(dataset.vocabulary), builder.device)
    for candidate in candidates:
        _try(found, candidate, partial(_made, builders, candidate, found.words))
    progress = Progress(logger, dataset.name, total)
    for done, sample in enumerate(prefetch(dataset, range(total), ahead=0), start=1):
        _one(segmenter, sample, found, rounds, warm_up=done == 1)
        progress.at(done)
    return found


def _made(builders: dict[str, Builder], candidate: Candidate, words: Words) -> Runner:
    """The classifier, with a CLIP in the candidate's own number format; candidates of one format share it."""
    if candidate.dtype not in builders:
        config = builders["fp32"].config
        clip = dataclasses.replace(config.clip, dtype=candidate.dtype)
        builders[candidate.dtype] = Builder(dataclasses.replace(config, clip=clip))
    made = builders[candidate.dtype].component("classifiers", candidate.slot)
    return Runner(candidate, made, ConfusionMatrix(len(words.vocabulary)))


def _try(found: Measured, candidate: Candidate, make: Callable[[], Runner]) -> None:
    """Add a candidate, or the reason why it is left out."""
    try:
        found.runners.append(make())
    except TwostageError as error:
        if not candidate.optional:
            raise
        found.skipped[candidate.name] = str(error)


def _one(segmenter: Segmenter, sample: Sample, found: Measured, rounds: int, warm_up: bool) -> None:
    """All candidates on one photo."""
    where = sample.source or sample.image_id
    if sample.labels is None:
        raise TwostageError(f"{where} has no ground truth, so no accuracy can be measured on it.")
    gather = partial(_gathered, segmenter, sample, found.words)
    if warm_up:
        gather()
    evidence, spent = timed(gather, segmenter.device)
    found.before += spent
    image = segmenter.size.resize(sample.image).to(segmenter.device or sample.image.device)
    if warm_up:
        _warm_up(segmenter, image, evidence, found)
    scores, seconds = _turns(segmenter, image, evidence, found, rounds)
    labels: list[Tensor] = []
    for runner, own, clocks in zip(found.runners, scores, seconds, strict=True):
        merged, spent = timed(partial(_merged, segmenter, evidence, own, found), segmenter.device)
        labels.append(merged.labels)
        runner.merge += spent
        runner.stage_two += _median(clocks)
        runner.equal += int((merged.labels == labels[0]).sum())
        runner.crops += _crops(runner, own)
        runner.confusion.update(merged.labels.cpu(), sample.labels, where)
    found.images += 1
    found.pixels += sample.labels.numel()


def _gathered(segmenter: Segmenter, sample: Sample, words: Words) -> Evidence:
    """Stage one and the dense map; where stage one is the ground truth itself, that."""
    cut: Any = getattr(segmenter.proposals, "propose_from_labels", None)
    given = None
    if cut is not None and sample.labels is not None:
        given = [cut(labels_at(sample.labels, segmenter.size.resize(sample.image).shape[-2:]))]
    return segmenter.gather([sample.image], words, given)[0]


def _warm_up(segmenter: Segmenter, image: Tensor, evidence: Evidence, found: Measured) -> None:
    """Everything once, uncounted; who refuses these masks is left out, if nobody asked for it."""
    runners, found.runners = found.runners, []
    for runner in runners:

        def once(runner: Runner = runner) -> Runner:
            _merged(segmenter, evidence, _classified(runner, image, evidence, found.words), found)
            return runner

        _try(found, runner.candidate, once)


def _turns(
    segmenter: Segmenter, image: Tensor, evidence: Evidence, found: Measured, rounds: int
) -> tuple[list[RegionScores], list[list[Seconds]]]:
    """Scores and seconds of each candidate; every other round goes through them backwards."""
    scores: dict[int, RegionScores] = {}
    clocks: list[list[Seconds]] = [[] for _ in found.runners]
    for turn in range(rounds):
        order = list(enumerate(found.runners))
        for place, runner in order if (turn + found.images) % 2 == 0 else order[::-1]:
            look = partial(_classified, runner, image, evidence, found.words)
            scores[place], spent = timed(look, segmenter.device)
            clocks[place].append(spent)
    return [scores[place] for place in range(len(found.runners))], clocks


@torch.inference_mode()
def _classified(runner: Runner, image: Tensor, evidence: Evidence, words: Words) -> RegionScores:
    assert evidence.proposals is not None
    return runner.classifier.classify([image], [evidence.proposals], words.text)[0]


@torch.inference_mode()
def _merged(segmenter: Segmenter, evidence: Evidence, scores: RegionScores, found: Measured) -> Segmentation:
    whole = dataclasses.replace(evidence, regions=scores)
    return segmenter.ensemble.merge(whole, found.words.vocabulary)


def _crops(runner: Runner, scores: RegionScores) -> int:
    """How many masks were cut out of the photo that was classified last."""
    told = getattr(runner.classifier, "crops_made", None)
    if told is not None:
        return sum(told)
    return int(scores.valid.sum()) if runner.candidate.slot.name == "crops" else 0


def timed(work: Callable[[], Any], device: torch.device | None) -> tuple[Any, Seconds]:
    """What the work gives, and how long it took, a GPU's part included."""
    waits = device is not None and device.type == "cuda"
    if waits:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    if waits:
        torch.cuda.synchronize(device)
    return made, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _median(clocks: Sequence[Seconds]) -> Seconds:
    return Seconds(
        statistics.median(one.wall for one in clocks), statistics.median(one.cpu for one in clocks)
    )
