"""The command line that all preparation programs share."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from twostage.data.prepare.plan import Request, Split
from twostage.data.prepare.run import prepare
from twostage.errors import TwostageError


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every program has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="folder of all data sets; default: $DETECTRON2_DATASETS, or datasets",
    )
    options.add_argument(
        "--split", action="append", default=[], help="only this split; repeat for more; default: all"
    )
    options.add_argument(
        "--workers", type=int, default=min(8, os.cpu_count() or 1), help="processes; default: %(default)s"
    )
    options.add_argument("--force", action="store_true", help="make every label map anew")
    options.add_argument(
        "--check-only",
        action="store_true",
        help="write nothing: compare what is there with the annotations, decode every photo",
    )
    options.add_argument(
        "--allow-partial",
        action="store_true",
        help="go on with the files there are; numbers will not compare with published ones",
    )
    return options


def run(given: argparse.Namespace, plan: Callable[[Request], list[Split]]) -> int:
    """Plan, prepare, report. 0; 1 with a message where something is wrong; 130 when interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        splits = plan(Request(given.root, tuple(given.split), given.allow_partial))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as bar:
            advance = functools.partial(_advance, bar, {})
            reports = prepare(splits, given.workers, given.force, given.check_only, advance)
    except TwostageError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What was made stays: the same command goes on from there.", file=sys.stderr)
        return 130
    for report in reports:
        print(report.format())
    return 0


def _advance(bar: Progress, lines: dict[str, TaskID], title: str, done: int, total: int) -> None:
    """One line a split."""
    if title not in lines:
        lines[title] = bar.add_task(title, total=total)
    bar.update(lines[title], completed=done)
