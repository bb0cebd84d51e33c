"""What a self-training run tells at its end: teacher against student, and what the labels were."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.config import Config
from twostage.data.atomic import replacing
from twostage.data.sample import SegmentationDataset
from twostage.engine.distributed import pick_device
from twostage.evaluation import provenance, report

logger = logging.getLogger(__name__)

NOT_USED = (
    "Hidden truth was counted for this table alone, after the labels were written: the ground "
    "truth of unseen classes had no part in labels, training or choices."
)


@dataclass(frozen=True)
class Round:
    """One round of labelling. counts: from `pseudo_labels.count`."""

    number: int
    counts: Mapping[str, Any]


def write_report(
    config: Config,
    dataset: SegmentationDataset,
    systems: Mapping[str, Sequence[Mapping[str, Any]]],
    rounds: Sequence[Round],
) -> Path:
    """Writes OUTPUT_DIR/self_training.json and .md; gives the latter.

    systems: the rows of report.row, with "dataset", of each step ("teacher", "student", ...).
    """
    out = Path(config.output_dir)
    rows = _side_by_side(systems)
    facts = provenance.provenance(
        dataset.vocabulary,
        dataset=dataset.name,
        device=pick_device(config.model.device),
        seeds={"run": config.seed},
        config=dataclasses.asdict(config),
    )
    labels = [{"round": one.number, **one.counts} for one in rounds]
    report.write_results(out / "self_training.json", rows, facts, pseudo_labels=labels, note=NOT_USED)
    parts = ["# Self-training"]
    for name in dict.fromkeys(row["dataset"] for row in rows):
        of_set = [row for row in rows if row["dataset"] == name]
        parts.append(f"## {name}, percent\n\n```\n{report.summary_table(of_set)}\n```")
        logger.info("Self-training, %s:\n%s", name, report.summary_table(of_set))
    for one in rounds:
        parts.append(f"## Pseudo labels, round {one.number}\n\n{_counts_text(one.counts)}")
    path = out / "self_training.md"
    with replacing(path) as stream:
        stream.write(("\n\n".join(parts) + "\n").encode())
    logger.info("Summary in %s", path)
    return path


def _side_by_side(systems: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The steps' rows, system by system, so that teacher and student stand below each other."""
    order = dict.fromkeys((row["dataset"], row["system"]) for rows in systems.values() for row in rows)
    several = len({dataset for dataset, _ in order}) > 1
    return [
        {**row, "system": f"{f'{dataset}, ' if several else ''}{system}: {name}", "step": name}
        for dataset, system in order
        for name, rows in systems.items()
        for row in rows
        if (row["dataset"], row["system"]) == (dataset, system)
    ]


def _counts_text(counts: Mapping[str, Any]) -> str:
    """Pixels of each class as a table, and what is to be known of it."""
    head = "| class | | pixels kept | pixels filled | hidden truth | of it right | % | of filled right, % |"
    lines = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in counts["classes"]:
        kind = "seen" if row["seen"] else "unseen"
        shares = [_percent(row["right"], row["true"]), _percent(row["right"], row["filled"])]
        shown = [row["name"], kind, *(str(row[key]) for key in ("kept", "filled", "true", "right")), *shares]
        lines.append(f"| {' | '.join(shown)} |")
    true = sum(row["true"] for row in counts["classes"])
    right = sum(row["right"] for row in counts["classes"])
    words = f"{counts['photos']} photos; {counts['void']} pixels void."
    if true:
        words += f" Agreement with hidden ground truth: {_percent(right, true)} %. {NOT_USED}"
    return f"{words}\n\n" + "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"
