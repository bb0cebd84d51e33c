"""Measuring an ablation table: rows that need the same evidence share one pass over the photos."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from twostage.builder import Builder, at_test_time
from twostage.clip.checks import ClipError
from twostage.config import Config, ConfigError
from twostage.data import catalog
from twostage.data.errors import DataError
from twostage.data.sample import SegmentationDataset
from twostage.download import DownloadError
from twostage.engine.checkpoint import CheckpointError
from twostage.errors import TwostageError
from twostage.evaluation import provenance, runner
from twostage.evaluation.runner import ORACLE_CLASSES, ORACLE_MASKS, Outcome
from twostage.interfaces import Ensemble
from twostage.registry import ComponentError
from twostage.runs import prompts
from twostage.runs.ablation_results import Problem, Result, Results, evidence_digest, row_digest
from twostage.runs.ablation_table import Recipe, Row, Table
from twostage.runs.dry_run import Plan, dry_run
from twostage.runs.remembering import remembering
from twostage.segmenter import Segmenter, Words
from twostage.systems import systems
from twostage.weights import WeightsError

logger = logging.getLogger(__name__)

LACKING = (ClipError, CheckpointError, WeightsError, DownloadError, DataError, ComponentError, OSError)
"""Errors that say something is not there, rather than that a row is wrong."""

PRODUCTS = {"prompts": prompts.FILE}
"""What a task leaves in OUTPUT_DIR, where that is not model_final.pth."""


@dataclass(frozen=True)
class Options:
    """results: the JSON file of what was measured; store: folder of evidence, or None to keep none; fresh:
    measure everything anew; dry: measure nothing; train: makes what a row lacks by its TRAIN
    (twostage.build.train), or None.
    """

    results: Path
    store: Path | None = None
    fresh: bool = False
    dry: bool = False
    train: Callable[[Config], Any] | None = None


@dataclass
class Measured:
    """found: results, problems: why there is none, both by the names of rows."""

    found: dict[str, Result] = field(default_factory=dict)
    problems: dict[str, Problem] = field(default_factory=dict)


def measure(table: Table, options: Options) -> Measured:
    """Measure every row that has no stored result; results are stored after each pass.

    Raises:
        ConfigError: a configuration is wrong, said before anything is measured.
    """
    results, measured = Results(options.results), Measured()
    todo, plans = [], _Plans()
    for row in table.rows:
        problem = _lacking(row, options, plans)
        known = None if options.fresh or problem else results.get(row_digest(row))
        if problem is not None:
            measured.problems[row.name] = problem
        elif known is not None:
            measured.found[row.name] = known
        else:
            todo.append(row)
    passes = [] if options.dry else grouped(todo)
    for number, rows in enumerate(passes, start=1):
        logger.info("Pass %d of %d: %s", number, len(passes), ", ".join(row.name for row in rows))
        found = _pass(rows, options, measured.problems)
        results.add({row_digest(row): found[row.name] for row in rows if row.name in found})
        measured.found |= found
    return measured


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one pass: they differ in the ensemble alone, and no oracle occurs twice among them."""
    passes: dict[tuple[str, int, int], list[Row]] = {}
    oracles: dict[tuple[str, str], int] = {}
    for row in rows:
        digest = evidence_digest(row.config)
        again = 0
        if row.system in (ORACLE_CLASSES, ORACLE_MASKS):  # the runner knows them by name
            again = oracles.get((digest, row.system), 0)
            oracles[digest, row.system] = again + 1
        passes.setdefault((digest, row.config.test.max_images, again), []).append(row)
    return list(passes.values())


def _made(recipe: Recipe) -> bool:
    """Whether a training has been run already."""
    config = recipe.config
    return Path(config.output_dir, PRODUCTS.get(config.task, "model_final.pth")).exists()


class _Plans:
    """What the configurations of rows lack; those that differ in the ensemble alone are resolved once."""

    def __init__(self) -> None:
        self._known: dict[str, Plan] = {}

    def of(self, row: Row, anew: bool = False) -> Plan:
        digest = evidence_digest(row.config)
        if anew or digest not in self._known:
            # The data of a training is no matter of a measurement.
            datasets = dataclasses.replace(row.config.datasets, train=[])
            self._known[digest] = dry_run(dataclasses.replace(row.config, datasets=datasets))
        return self._known[digest]


def _lacking(row: Row, options: Options, plans: _Plans) -> Problem | None:
    """What a row lacks, after the trainings that make it where those are wanted."""
    plan = plans.of(row)
    if plan.missing and not plan.wrong and row.train and options.train is not None:
        try:
            _train(row, options.train)
        except (TwostageError, OSError) as error:
            return Problem.of("missing", error)
        plan = plans.of(row, anew=True)
    if plan.wrong:
        raise ConfigError(f"Row {row.name!r}: {' '.join(plan.wrong)}")
    try:
        Builder(row.config).component("ensembles", row.config.ensemble)
    except TwostageError as error:
        raise ConfigError(f"Row {row.name!r}: {error}") from error
    if not plan.missing:
        return None
    hint = tuple(f"To train (or add --train): `{one.command}`" for one in row.train if not _made(one))
    return Problem(
        "missing", ", ".join(line.partition(":")[0] for line in plan.missing), (*plan.missing, *hint)
    )


def _train(row: Row, train: Callable[[Config], Any]) -> None:
    """Every training of the row whose file is not there yet; data and device are the row's."""
    for recipe in row.train:
        config = dataclasses.replace(
            recipe.config,
            datasets=dataclasses.replace(recipe.config.datasets, root=row.config.datasets.root),
            model=dataclasses.replace(recipe.config.model, device=row.config.model.device),
        )
        if not _made(recipe):
            logger.info("Row %s: training %s", row.name, recipe.command)
            train(config)


def _pass(rows: Sequence[Row], options: Options, problems: dict[str, Problem]) -> dict[str, Result]:
    """One pass over the photos; rows that cannot be measured are told in `problems`."""
    config = rows[0].config
    try:
        dataset = catalog.get(config.datasets.test[0], config.datasets.root)
        segmenter, words = _segmenter(rows, dataset, options)
        compared, wrong = _compared(rows, segmenter)
        problems |= wrong
        rows = [row for row in rows if row.name not in wrong]
        if not rows:
            return {}
        skip = config.test.on_error == "skip"
        outcome = runner.evaluate(
            segmenter, dataset, words, compared, config.test.max_images, skip_broken=skip
        )
    except (TwostageError, OSError) as error:
        problem = Problem.of("missing" if isinstance(error, LACKING) else "failed", error)
        problems |= {row.name: problem for row in rows}
        return {}
    return {row.name: _result(row, outcome, dataset) for row in rows}


def _segmenter(
    rows: Sequence[Row], dataset: SegmentationDataset, options: Options
) -> tuple[Segmenter, Words]:
    """The parts of a pass and its words; from the store where there is one for these rows."""
    builder = Builder(rows[0].config)

    @cache
    def make() -> tuple[Segmenter, Words]:
        return builder.segmenter().for_any_ensemble(), builder.words(dataset.vocabulary)

    config = rows[0].config
    plain = at_test_time(config).plain and not config.pixels.name and config.proposals.name != "oracle"
    if options.store is None or not plain or any(row.system == ORACLE_MASKS for row in rows):
        return make()
    folder = options.store / evidence_digest(config)
    return remembering(folder, builder.component("ensembles", config.ensemble), builder.device, make)


def _compared(rows: Sequence[Row], segmenter: Segmenter) -> tuple[dict[str, Ensemble], dict[str, Problem]]:
    """What the runner measures, by _key; and the rows whose system these parts do not have."""
    compared, wrong = {}, {}
    for row in rows:
        try:
            ensemble = Builder(row.config).component("ensembles", row.config.ensemble)
            own = dataclasses.replace(segmenter, ensemble=ensemble)
            compared[_key(row)] = systems(own, [row.system])[row.system]
        except TwostageError as error:
            wrong[row.name] = Problem.of("failed", error)
    return compared, wrong


def _key(row: Row) -> str:
    return row.system if row.system in (ORACLE_CLASSES, ORACLE_MASKS) else f"row: {row.name}"


def _result(row: Row, outcome: Outcome, dataset: SegmentationDataset) -> Result:
    metrics = outcome.metrics[_key(row)].as_dict()
    own_masks = row.system != ORACLE_MASKS  # recall is that of stage one
    recall = outcome.recall.get("all") if own_masks else None
    return {
        "name": row.name,
        "system": row.system,
        **metrics,
        **({} if recall is None else dataclasses.asdict(recall)),
        "dataset": dataset.name,
        "images": outcome.images,
        **({"partial": True, "left_out": list(outcome.failed)} if outcome.failed else {}),
        "seconds": round(outcome.seconds, 1),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        "vocabulary": dataset.vocabulary.digest,
        "dense": provenance.dense_facts(row.config.dense.name, row.config.dense.options),
        "config": dataclasses.asdict(row.config),
    }
