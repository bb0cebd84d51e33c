"""What learning a prompt came to: every seed, their mean and spread, the choice, and the templates."""

from __future__ import annotations

import dataclasses
import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from twostage.builder import Builder
from twostage.evaluation import provenance, report
from twostage.evaluation.top_k import TopK
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)
COLUMNS = (
    "choice",
    "certainty",
    "top1",
    "top5",
    "seen top1",
    "seen top5",
    "unseen top1",
    "unseen top5",
    "harmonic",
)
"""Percent, means over classes; choice, certainty: what seeds are compared by; harmonic: of seen and
unseen top1."""


class Score(NamedTuple):
    """What seeds are compared by, percent: mean top-1, and in a tie the probability of the true class."""

    top1: float
    certainty: float


@dataclass(frozen=True)
class Judged:
    """One seed's prompt. score: None where there is nothing to choose by; tests: by test set."""

    score: Score | None
    tests: Mapping[str, TopK]


def write_report(
    builder: Builder,
    words: Mapping[str, Vocabulary],
    plain: Mapping[str, TopK],
    judged: Mapping[int, Judged],
    best: int | None,
) -> None:
    """A table in the log and OUTPUT_DIR/inference[/TEST SET]/results.json for each test set.

    words: of the test sets; plain: what the text of the configuration (templates, or a learned prompt)
    reaches there; judged: by seed; best: the chosen seed.
    """
    for name, found in plain.items():
        given = builder.config.clip
        learned = builder.texts.prompts.crops is not None
        label = "learned prompt" if learned else f"templates: {given.templates}"
        rows = [row(label, None, found)]
        seeds = [row(f"seed {seed}", one.score, one.tests[name]) for seed, one in judged.items()]
        rows += seeds
        table = [*rows]
        if len(seeds) > 1:
            table += [{"system": f"mean of {len(seeds)} seeds", **_over(seeds, "mean")}]
            table += [{"system": "spread (standard deviation)", **_over(seeds, "deviation")}]
        if best is not None:
            table.append(row(f"chosen: seed {best}", judged[best].score, judged[best].tests[name]))
        logger.info("%s, regions named right:\n%s", name, report.summary_table(table, COLUMNS))
        out = Path(builder.config.output_dir, "inference")
        if len(plain) > 1:
            out /= name.replace("/", "_").replace(":", "_")
        summary = {column: _spread(seeds, column) for column in COLUMNS} if seeds else {}
        path = report.write_results(
            out / "results.json", rows, _facts(builder, words[name], name), chosen_seed=best, summary=summary
        )
        logger.info("Results in %s", path)


def best_seed(judged: Mapping[int, Judged]) -> int:
    """The seed with the best score, tenths of a percent being a tie; the first of equals."""

    def rank(seed: int) -> tuple[float, float]:
        score = judged[seed].score
        return (0.0, 0.0) if score is None else (round(score.top1, 1), score.certainty)

    return max(judged, key=rank)


def row(system: str, score: Score | None, found: TopK) -> dict[str, Any]:
    """One line of the table and of the file."""
    line: dict[str, Any] = {"system": system, "choice": None, "certainty": None}
    if score is not None:
        line |= {"choice": score.top1, "certainty": score.certainty}
    for prefix, one in (("", found.overall), ("seen ", found.seen), ("unseen ", found.unseen)):
        line[f"{prefix}top1"] = None if one is None else one.mean_top1
        line[f"{prefix}top5"] = None if one is None else one.mean_top5
    return {**line, "harmonic": found.harmonic, "details": found.as_dict()}


def _spread(rows: list[dict[str, Any]], column: str) -> dict[str, float] | None:
    """Mean, standard deviation (of a sample), least and most of a column; None where a number is missing."""
    values = [entry[column] for entry in rows]
    if any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": statistics.fmean(values),
        "deviation": deviation,
        "least": min(values),
        "most": max(values),
    }


def _over(rows: list[dict[str, Any]], what: str) -> dict[str, float | None]:
    spreads = {column: _spread(rows, column) for column in COLUMNS}
    return {column: None if one is None else one[what] for column, one in spreads.items()}


def _facts(builder: Builder, words: Vocabulary, dataset: str) -> dict[str, Any]:
    config, clip = builder.config, builder.clip
    return provenance.provenance(
        words,
        dataset=dataset,
        device=builder.device,
        clip={
            "name": clip.name,
            "weights": config.clip.pretrained,
            "digest": clip.digest,
            "dtype": config.clip.dtype,
        },
        templates=builder.texts.wording,
        resize_backend="Pillow bilinear on uint8 (photos), torch bicubic (crops)",
        seeds={f"prompt {number}": seed for number, seed in enumerate(config.prompts.seeds)},
        config=dataclasses.asdict(config),
    )
