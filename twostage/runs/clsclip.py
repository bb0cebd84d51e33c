"""Training and measuring ClsCLIP, one fold after the other."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from twostage.builder import Builder
from twostage.checkpoints import starting_weights
from twostage.config import Config, ConfigError
from twostage.data import catalog
from twostage.data.fold_dataset import FoldDataset
from twostage.data.folds import Split, split_of
from twostage.data.same_words import forms
from twostage.data.sample import SegmentationDataset
from twostage.engine.checkpoint import FINAL, Checkpointer, CheckpointError
from twostage.engine.trainer import Trainer
from twostage.evaluation import expected
from twostage.evaluation.binary import PairMetrics, mean_over_folds
from twostage.evaluation.expected import Expectation
from twostage.evaluation.pairs import PairRule, evaluate_pairs
from twostage.networks import Trained
from twostage.runs.clsclip_report import system_of, write_folds, write_report
from twostage.runs.proposals import ready
from twostage.runs.training import Data
from twostage.tasks.clsclip import ClsClipTask
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
Found = dict[str, dict[str, PairMetrics]]
"""Data set -> system -> numbers."""


def train(config: Config, resume: bool = False) -> Path:
    """Train on the base classes of DATASETS.TRAIN, measure on DATASETS.TEST; once for each of CLSCLIP.FOLD,
    in OUTPUT_DIR/fold_N where there are several, a finished one not again with `resume`.

    Returns:
        The file with the weights (of the last fold), for MODEL.WEIGHTS or MODEL.CLSCLIP_WEIGHTS.

    Raises:
        ConfigError: the evaluation at the end would not use what was trained, or cannot be made.
    """
    config = ready(config)
    courses = folds_of(config)
    figures_of(config)
    for course in courses:
        _refuse_what_evaluation_would(course)
    if len(courses) == 1:
        return _train_one(config, resume)
    path, found = Path(), []
    for course in courses:
        path = Path(course.output_dir, FINAL)
        if not (resume and path.is_file()):
            _train_one(course, resume, at_end=False)
        if course.datasets.test:
            found.append(_measure(_with_weights(course, path)))
    if found:
        _summarise(courses, found)
    return path


def _train_one(config: Config, resume: bool, at_end: bool = True) -> Path:
    """at_end: measure on DATASETS.TEST after the last update."""
    data = Data.of(config)
    folded = FoldDataset(data.train, split_for(config, data.train), config.clsclip.unlabelled)
    data = dataclasses.replace(data, train=folded, vocabulary=folded.words)
    builder = Builder(config)
    network = builder.clsclip_network()
    text = builder.text(data.vocabulary)
    task = ClsClipTask(network, builder.clip, text, data.vocabulary, config.solver, config.clsclip)
    builder.trained_clsclip = Trained(network, data.vocabulary.every_name)
    if data.tests:
        builder.component("dense", config.dense)  # raises now what it would raise at the end
    data.announce(network)
    measure = _measure_while_training(builder, data.tests if at_end else [])
    return Trainer(task, data.batches, config, measure, starting_weights(network)).run(resume)


def _measure_while_training(
    builder: Builder, tests: list[SegmentationDataset]
) -> Callable[[int], Mapping[str, float]] | None:
    if not tests:
        return None

    def measured(_: int) -> Mapping[str, float]:
        return {
            f"{dataset}/{system}/{name}": value
            for dataset, systems in measure(builder, tests).items()
            for system, metrics in systems.items()
            for name, value in (("unseen", metrics.unseen), ("FB-IoU", metrics.FB_IoU))
            if value is not None
        }

    return measured


def evaluate(config: Config, resume: bool = False) -> Found:
    """Measure DENSE.NAME on DATASETS.TEST, pair by pair; resume: with OUTPUT_DIR's newest checkpoint, of each
    fold where there are several, whose mean is reported too.

    Raises:
        ConfigError: DATASETS.TEST is empty, several folds and one file of weights, or TEST.RESUME.
        CheckpointError: there is nothing to evaluate.
        UnexpectedResultError: a figure of TEST.EXPECTED_RESULTS was not met.
    """
    if not config.datasets.test:
        raise ConfigError("DATASETS.TEST is empty: name at least one data set to evaluate.")
    if config.test.resume:
        raise ConfigError("TEST.RESUME: one-word segmentation keeps no counts to go on with; leave it out.")
    courses, figures = folds_of(config), figures_of(config)
    if len(courses) > 1 and uses_what_is_trained(config) and not resume:
        raise ConfigError(
            f"CLSCLIP.FOLD: {len(courses)} folds have weights of their own each, in OUTPUT_DIR/fold_N: "
            "evaluate with --resume, or name one fold."
        )
    found = [_measure(_newest(course) if resume else course) for course in courses]
    result = found[0] if len(found) == 1 else _summarise(courses, found)
    if not config.test.max_images:
        expected.require_met(expected.judge(figures, result))
    return result


def _measure(config: Config) -> Found:
    names, root = config.datasets.test, config.datasets.root
    return measure(Builder(config), [catalog.get(name, root) for name in names])


def measure(builder: Builder, tests: list[SegmentationDataset]) -> Found:
    """Numbers of the configured head on these data sets; results go below OUTPUT_DIR/inference."""
    config = builder.config
    head = builder.component("dense", config.dense)
    found: Found = {}
    for dataset in tests:
        split = split_for(config, dataset)
        if uses_what_is_trained(config):
            _refuse_leaks(builder.trained_clsclip.names, dataset.vocabulary, split)
        size = TestSize(config.input.min_size_test, config.input.max_size_test)
        text = builder.text(dataset.vocabulary)
        skip, most = config.test.on_error == "skip", config.test.max_images
        outcome = evaluate_pairs(head, dataset, text, split, rule_of(config), size, most, skip_broken=skip)
        system = system_of(config)
        found[dataset.name] = {system + name: metrics for name, metrics in outcome.metrics.items()}
        write_report(builder, dataset, split, outcome, found[dataset.name], len(tests) > 1)
    return found


def _refuse_leaks(trained: Sequence[str], vocabulary: Vocabulary, split: Split) -> None:
    """Raises ConfigError where a class that this fold holds out is among the trained names."""
    flags = vocabulary.with_seen(trained, forms).seen or ()
    learned = [vocabulary.shown[position] for position in split.held_out if flags[position]]
    if learned:
        raise ConfigError(
            f"CLSCLIP.FOLD: the weights are trained on {', '.join(learned[:5])}, which this fold holds out. "
            "Name the fold that they are trained in, or train this one."
        )


def uses_what_is_trained(config: Config) -> bool:
    """Whether the dense head is a trained ClsCLIP."""
    return config.dense.name == "clsclip" and config.dense.options.get("injection", "learned") == "learned"


def rule_of(config: Config) -> PairRule:
    """When a pixel counts as found."""
    options = config.clsclip
    return PairRule(tuple(options.thresholds), options.rule == "argmax", options.unlabelled == "background")


def split_for(config: Config, dataset: SegmentationDataset) -> Split:
    """The base and held-out classes of a data set in a configuration of one fold.

    Raises:
        DatasetError: there is no such fold.
    """
    options = config.clsclip
    fold = options.fold[0] if options.fold else None
    return split_of(dataset.vocabulary, fold, options.folds, options.fold_order, options.classes)


def folds_of(config: Config) -> list[Config]:
    """One configuration for each fold, with a folder of its own where there are several.

    Raises:
        ConfigError: a fold is named twice or does not exist.
    """
    folds = config.clsclip.fold
    if len({*folds}) < len(folds) or any(fold >= config.clsclip.folds for fold in folds):
        raise ConfigError(
            f"CLSCLIP.FOLD: expected different folds of 0..{config.clsclip.folds - 1}, got {folds}."
        )
    if len(folds) < 2:
        return [config]
    return [
        dataclasses.replace(
            config,
            output_dir=str(Path(config.output_dir, f"fold_{fold}")),
            test=dataclasses.replace(config.test, expected_results=[]),  # these speak of the mean
            clsclip=dataclasses.replace(config.clsclip, fold=[fold]),
        )
        for fold in folds
    ]


def _refuse_what_evaluation_would(config: Config) -> None:
    """Raises now what would be raised after the training."""
    data = Data.of(config)
    base = split_for(config, data.train).base
    trained = [name for position in base for name in data.train.vocabulary.names[position]]
    if data.tests and not uses_what_is_trained(config):
        raise ConfigError(
            f"TASK clsclip: DATASETS.TEST would be measured without what is trained, DENSE.NAME is "
            f"{config.dense.name!r}, its options {config.dense.options}. Set DENSE.NAME clsclip with "
            "injection learned, or leave DATASETS.TEST empty."
        )
    for test in data.tests:
        _refuse_leaks(trained, test.vocabulary, split_for(config, test))


def figures_of(config: Config) -> list[Expectation]:
    """TEST.EXPECTED_RESULTS.

    Raises:
        ConfigError: a row speaks of something that is not measured.
    """
    systems = [system_of(config) + name for name in rule_of(config).names]
    names = [catalog.get(name, config.datasets.root).name for name in config.datasets.test]
    return expected.parse(config.test.expected_results, names, systems, expected.PAIR_METRICS)


def _summarise(courses: list[Config], found: list[Found]) -> Found:
    """The mean over folds, also as a file in the folder above them."""
    means: Found = {}
    for dataset in found[0]:
        means[dataset] = {
            system: mean_over_folds([one[dataset][system] for one in found]) for system in found[0][dataset]
        }
    write_folds(courses, found, means)
    return means


def _with_weights(config: Config, path: Path) -> Config:
    model = dataclasses.replace(config.model, weights="", clsclip_weights=str(path))
    if "maskformer" in config.proposals.names():
        model = dataclasses.replace(model, weights=config.model.weights)
    return dataclasses.replace(config, model=model)


def _newest(config: Config) -> Config:
    found = Checkpointer(config.output_dir).load_newest()
    if found is None:
        raise CheckpointError(f"OUTPUT_DIR: there is no checkpoint in {config.output_dir} to evaluate.")
    return _with_weights(config, found[0])
