"""Tables and results files of one-word segmentation."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from twostage.builder import Builder
from twostage.config import Config
from twostage.data.folds import Split
from twostage.data.sample import SegmentationDataset
from twostage.engine import distributed
from twostage.evaluation import expected, provenance, report
from twostage.evaluation.binary import PairMetrics
from twostage.evaluation.pairs import PairOutcome

logger = logging.getLogger(__name__)
COLUMNS = ("unseen", "FB-IoU", "seen", "FB-IoU seen", "hIoU")
"""unseen: mIoU of the held-out classes."""
PROTOCOL = (
    "pairs: every photo is asked for each class that it shows; IoU of a class from the pixels of all its "
    "pairs; unseen: mean over the held-out classes; FB-IoU: mean of foreground and background IoU over all "
    "pairs of held-out classes"
)


def system_of(config: Config) -> str:
    """What results call the configured head: clsclip, clsclip+, or the component's name with its preset."""
    slot = config.dense
    if slot.name == "clsclip":
        plus = "+" if slot.options.get("zoom") else ""
        return f"clsclip{plus}" + (" pinv" if slot.options.get("injection") == "pinv" else "")
    preset = slot.options.get("preset")
    return f"{slot.name} {preset}" if preset else slot.name


def write_report(
    builder: Builder,
    dataset: SegmentationDataset,
    split: Split,
    outcome: PairOutcome,
    systems: Mapping[str, PairMetrics],
    folder_each: bool,
) -> None:
    """Logs the tables of one data set and writes OUTPUT_DIR/inference/results.json."""
    if not distributed.is_main():
        return
    config, vocabulary = builder.config, dataset.vocabulary
    rows = [
        {"system": name, **metrics.as_dict(), "dataset": dataset.name} for name, metrics in systems.items()
    ]
    out = Path(config.output_dir, "inference")
    if folder_each:
        out /= dataset.name.replace("/", "_").replace(":", "_")
    logger.info("%s, per class:\n%s", dataset.name, report.class_table(rows))
    logger.info(
        "%s, %d photos, %d pairs, %.1f photos a second:\n%s",
        dataset.name,
        outcome.images,
        outcome.pairs,
        outcome.images / max(outcome.seconds, 1e-9),
        report.summary_table(rows, COLUMNS),
    )
    verdicts = []
    if not config.test.max_images:
        rows_of = expected.parse(config.test.expected_results, metrics=expected.PAIR_METRICS)
        wanted = [row for row in rows_of if row.dataset == dataset.name]
        verdicts = expected.judge(wanted, {dataset.name: systems})
    path = report.write_results(
        out / "results.json",
        rows,
        provenance.provenance(
            vocabulary,
            dataset=dataset.name,
            device=builder.device,
            clip={"name": builder.clip.name, "digest": builder.clip.digest, "dtype": config.clip.dtype},
            templates=builder.texts.wording,
            resize_backend="torch bilinear, antialiased",
            seeds={"run": config.seed},
            config=dataclasses.asdict(config),
        ),
        protocol=PROTOCOL,
        fold={
            "fold": config.clsclip.fold,
            "held_out": [vocabulary.shown[position] for position in split.held_out],
            "base": [vocabulary.shown[position] for position in split.base],
        },
        images=outcome.images,
        **({"partial": True, "left_out": list(outcome.failed)} if outcome.failed else {}),
        pairs=outcome.pairs,
        seconds=outcome.seconds,
        expected=[verdict.as_dict() for verdict in verdicts],
    )
    logger.info("Results in %s", path)


def write_folds(
    courses: Sequence[Config],
    found: Sequence[Mapping[str, Mapping[str, PairMetrics]]],
    means: Mapping[str, Mapping[str, PairMetrics]],
) -> None:
    """Logs the folds beside their mean and writes OUTPUT_DIR/folds.json."""
    if not distributed.is_main():
        return
    rows = []
    for dataset, systems in means.items():
        for system, mean in systems.items():
            for course, one in zip(courses, found, strict=True):
                name = f"{dataset}, {system}, fold {course.clsclip.fold[0]}"
                rows.append({"system": name, **one[dataset][system].as_dict()})
            rows.append({"system": f"{dataset}, {system}, mean", **mean.as_dict()})
    logger.info("Folds:\n%s", report.summary_table(rows, COLUMNS))
    folder = Path(courses[0].output_dir).parent
    config = dataclasses.asdict(courses[0])
    path = report.write_results(
        folder / "folds.json",
        rows,
        {"versions": provenance.versions(), "git_revision": provenance.git_revision(), "config": config},
        protocol=PROTOCOL,
    )
    logger.info("Results in %s", path)
