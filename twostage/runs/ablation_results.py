"""What was measured for the rows of a table: kept in a JSON file by digest, printed as Markdown."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twostage.config import Config, SlotConfig
from twostage.data.atomic import replacing
from twostage.errors import TwostageError
from twostage.runs.ablation_table import Row, Table
from twostage.runs.digests import config_digest, measured_config

Result = Mapping[str, Any]
"""Of one row: its columns and whatever else is known, as plain data."""


@dataclass(frozen=True)
class Problem:
    """Why a row has no numbers. kind: "missing" or "failed"; note: for its line; details: sentences below the
    table, each of them once.
    """

    kind: str
    note: str
    details: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: str, error: Exception) -> Problem:
        """An error, shortened in the line of the row."""
        text = " ".join(str(error).split())
        return cls(kind, textwrap.shorten(text, 80, placeholder=" ..."), (text,))


def evidence_digest(config: Config) -> str:
    """16 hex digits over what a photo's evidence depends on: all but the ensemble and the count of photos."""
    config = measured_config(config)
    test = dataclasses.replace(config.test, max_images=0)
    return config_digest(dataclasses.replace(config, ensemble=SlotConfig(), test=test))


def row_digest(row: Row) -> str:
    """16 hex digits over the row's configuration, the files it names and the system that is measured."""
    return config_digest(measured_config(row.config), row.system)


class Results:
    """Results by digest in one JSON file, written whole after each addition; an interrupted table goes on.

    Raises:
        TwostageError: the file is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, Any] = {}
        if self.path.exists():
            try:
                self._rows = dict(json.loads(self.path.read_text(encoding="utf-8"))["rows"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise TwostageError(
                    f"{self.path}: these are no stored results ({error}); name another file or remove it."
                ) from error

    def get(self, digest: str) -> Result | None:
        """What was measured under this digest."""
        return self._rows.get(digest)

    def add(self, found: Mapping[str, Result]) -> None:
        """Keep results by digest."""
        self._rows.update(found)
        text = json.dumps({"rows": self._rows}, indent=1, ensure_ascii=False, allow_nan=False)
        with replacing(self.path) as stream:
            stream.write((text + "\n").encode())


def markdown(table: Table, found: Mapping[str, Result], problems: Mapping[str, Problem]) -> str:
    """The table: a line a row, the paper's figures in columns of their own, what is missing below.

    found, problems: by the names of rows.
    """
    published = [name for name in table.columns if any(name in row.paper for row in table.rows)]
    lines = [["", *table.columns, *(f"paper: {name}" for name in published), *(["note"] if problems else [])]]
    for row in table.rows:
        own, problem = found.get(row.name, {}), problems.get(row.name)
        numbers = [_number(own.get(name)) for name in table.columns]
        numbers += [_number(row.paper.get(name)) for name in published]
        note = "" if problem is None else f"{problem.kind}: {problem.note}"
        lines.append([row.name, *numbers, *([note] if problems else [])])
    text = [f"## {table.title}", ""]
    text += [table.about, ""] if table.about else []
    text += [*aligned(lines, len(table.columns) + len(published)), "", _source(table.rows, found)]
    details = dict.fromkeys(detail for problem in problems.values() for detail in problem.details)
    text += ["", *(f"- {detail}" for detail in details)] if details else []
    return "\n".join(text) + "\n"


def _source(rows: Sequence[Row], found: Mapping[str, Result]) -> str:
    """Data sets, photos and seeds behind the numbers, in a sentence."""
    told = dict.fromkeys(
        f"{own['dataset']}, {own['images']} photos, seed {row.config.seed}"
        for row in rows
        if (own := found.get(row.name))
    )
    return f"Percent; {'; '.join(told)}." if told else "Nothing was measured."


def aligned(lines: Sequence[Sequence[str]], numbers: int) -> list[str]:
    """A Markdown table: one column of text, `numbers` columns of numbers, what is left is text again."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    right = [0 < column <= numbers for column in range(len(widths))]
    rule = [
        "-" * (width - 1) + ":" if flush else "-" * width for width, flush in zip(widths, right, strict=True)
    ]
    drawn = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        drawn.append(f"| {' | '.join(cells)} |")
    return drawn


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"
