"""Measuring every system on DATASETS.TEST, with tables, pictures and a results file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage import visualize
from twostage.builder import Builder
from twostage.config import Config, ConfigError
from twostage.data import catalog
from twostage.data.sample import Sample, SegmentationDataset
from twostage.engine import distributed
from twostage.engine.checkpoint import Checkpointer, CheckpointError
from twostage.evaluation import expected, provenance, report, runner
from twostage.evaluation.expected import Verdict
from twostage.evaluation.runner import Outcome
from twostage.evaluation.tally import Unfinished
from twostage.interfaces import Ensemble
from twostage.protocol import settled
from twostage.runs.unfinished import forget, unfinished_in
from twostage.segmenter import Segmenter, Words
from twostage.systems import ENSEMBLE, systems
from twostage.types import Segmentation

logger = logging.getLogger(__name__)


def evaluate(config: Config, resume: bool = False) -> dict[str, Outcome]:
    """Measure all systems on DATASETS.TEST with MODEL.WEIGHTS; resume: OUTPUT_DIR's newest checkpoint, and
    the counts that an evaluation of it left there when it was stopped.

    Raises:
        TrainingInterrupted: a signal asked to stop; the counts are kept for TEST.RESUME.
    """
    if resume:
        found = Checkpointer(config.output_dir).load_newest()
        if found is None:
            raise CheckpointError(f"OUTPUT_DIR: there is no checkpoint in {config.output_dir} to evaluate.")
        model = dataclasses.replace(config.model, weights=str(found[0]))
        config = dataclasses.replace(config, model=model, test=dataclasses.replace(config.test, resume=True))
    config = settled(config)
    if not config.datasets.test:
        raise ConfigError("DATASETS.TEST is empty: name at least one data set to evaluate.")
    tests = [catalog.get(name, config.datasets.root) for name in config.datasets.test]
    outcomes = measure(Builder(config), tests, keep=True)
    expected.require_met(_verdicts(config, outcomes))
    return outcomes


def measure(builder: Builder, tests: list[SegmentationDataset], keep: bool = False) -> dict[str, Outcome]:
    """Evaluate the built parts on these data sets; results go below OUTPUT_DIR/inference.

    keep: counts are saved there while it lasts, and those of a stopped one taken up if TEST.RESUME says so.
    """
    config = builder.config
    segmenter, compared = comparison(builder, tests)
    outcomes, folders = {}, []
    for dataset in tests:
        words = builder.words(dataset.vocabulary)
        out = Path(config.output_dir, "inference")
        if len(tests) > 1:
            out /= dataset.name.replace("/", "_").replace(":", "_")
        folders.append(out)
        logger.info("Evaluating %d systems on %s", len(compared), dataset.name)
        kept = None
        if keep:
            names = list(compared)
            kept = unfinished_in(out, config, dataset, words.vocabulary, names, builder.device)
        outcome = runner.evaluate(
            segmenter,
            dataset,
            words,
            compared,
            config.test.max_images,
            _Pictures(out / "overlays", words, config.test.overlays, kept),
            skip_broken=config.test.on_error == "skip",
            unfinished=kept,
        )
        if distributed.is_main():
            _report(builder, dataset, words, outcome, out)
        outcomes[dataset.name] = outcome
    if distributed.is_main():
        for folder in folders:
            forget(folder)
    verdicts = _verdicts(config, outcomes)
    if verdicts:
        logger.info("Expected figures:\n%s", expected.format_verdicts(verdicts))
    return outcomes


def comparison(
    builder: Builder, tests: Sequence[SegmentationDataset]
) -> tuple[Segmenter, dict[str, Ensemble]]:
    """The built parts and the systems to compare; what an evaluation refuses, this does.

    Raises:
        ConfigError: two data sets of one name, a system that the parts do not have, or an expected figure of
            something that is not evaluated.
    """
    config, names = builder.config, [test.name for test in tests]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"DATASETS.TEST: two data sets are called {twice!r}, so the results of one would replace those "
            "of the other. Rename a folder, or evaluate them in runs of their own."
        )
    segmenter = builder.segmenter()
    compared = systems(segmenter, config.test.systems)
    if list(compared) != [ENSEMBLE]:
        segmenter = segmenter.for_any_ensemble()
    expected.parse(config.test.expected_results, names, list(compared))
    return segmenter, compared


def _verdicts(config: Config, outcomes: Mapping[str, Outcome]) -> list[Verdict]:
    """How the outcomes compare with TEST.EXPECTED_RESULTS; none where only some photos were looked at."""
    if config.test.max_images:
        return []
    wanted = expected.parse(config.test.expected_results)
    here = [expectation for expectation in wanted if expectation.dataset in outcomes]
    return expected.judge(here, {name: outcome.metrics for name, outcome in outcomes.items()})


def _report(
    builder: Builder, dataset: SegmentationDataset, words: Words, outcome: Outcome, out: Path
) -> None:
    rows = [report.row(name, metrics, dataset=dataset.name) for name, metrics in outcome.metrics.items()]
    logger.info("%s, per class:\n%s", dataset.name, report.class_table(rows))
    if outcome.recall:
        logger.info("%s, proposals:\n%s", dataset.name, report.recall_table(outcome.recall))
    rate = outcome.images / max(outcome.seconds, 1e-9)
    logger.info(
        "%s, %d photos, %.1f a second:\n%s", dataset.name, outcome.images, rate, report.summary_table(rows)
    )
    config = builder.config
    verdicts = _verdicts(config, {dataset.name: outcome})
    dense = provenance.dense_facts(config.dense.name, config.dense.options)
    resized = f", {dense['resize']} (dense head)" if "resize" in dense else ""
    path = report.write_results(
        out / "results.json",
        rows,
        provenance.provenance(
            words.vocabulary,
            dataset=dataset.name,
            device=builder.device,
            clip=_clip_facts(builder),
            dense=dense,
            templates=builder.texts.wording,
            resize_backend=f"Pillow bilinear on uint8 (photos), torch bicubic (crops){resized}",
            seeds={"run": config.seed},
            config=dataclasses.asdict(config),
        ),
        proposals={name: dataclasses.asdict(recall) for name, recall in outcome.recall.items()},
        images=outcome.images,
        **({"partial": True, "left_out": list(outcome.failed)} if outcome.failed else {}),
        seconds=outcome.seconds,
        expected=[verdict.as_dict() for verdict in verdicts],
    )
    if outcome.failed:
        logger.warning(
            "%s: %d of %d photos were left out, see left_out in %s; the numbers are of the others.",
            dataset.name,
            len(outcome.failed),
            len(outcome.failed) + outcome.images,
            path,
        )
    logger.info("Results in %s", path)


def _clip_facts(builder: Builder) -> dict[str, Any]:
    options = builder.config.clip
    if options.text_features:
        return {"text_features": options.text_features}
    return {
        "name": builder.clip.name,
        "weights": options.pretrained,
        "digest": builder.clip.digest,
        "dtype": options.dtype,
    }


def scalars(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """The headline numbers for the curves."""
    values = {}
    for dataset, outcome in outcomes.items():
        for system, metrics in outcome.metrics.items():
            for name, value in (("mIoU", metrics.as_dict().get("mIoU")), ("hIoU", metrics.hIoU)):
                if value is not None:
                    values[f"{dataset}/{system}/{name}"] = float(value)
    return values


class _Pictures:
    """Writes photo, truth and ensemble side by side for the first photos of an evaluation."""

    def __init__(self, folder: Path, words: Words, count: int, kept: Unfinished | None) -> None:
        self._folder, self._words, self._kept = folder, words, kept
        self._left = count if distributed.is_main() else 0

    def __call__(self, sample: Sample, shown: dict[str, Segmentation]) -> None:
        if self._left <= (0 if self._kept is None else self._kept.before):  # those are drawn already
            return
        self._left -= 1
        labels = shown.get(ENSEMBLE, next(iter(shown.values()))).labels.cpu()
        sheet = visualize.side_by_side(sample.image, sample.labels, labels, self._words.vocabulary)
        visualize.files.write_picture(self._folder / f"{sample.image_id}.png", sheet)
