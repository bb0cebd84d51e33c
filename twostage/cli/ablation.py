"""twostage ablation TABLE.yaml"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Register `ablation`."""
    parser = commands.add_parser(
        "ablation",
        help="measure an ablation table and print it as Markdown",
        description="Measure every row of a table and print it as Markdown. What was measured is kept, so an "
        "interrupted table goes on; rows that share their networks share one pass over the photos.",
    )
    parser.add_argument("table", type=Path, help="a file of configs/ablations")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options for every row of the table"
    )
    parser.add_argument("-o", "--out", type=Path, help="write the Markdown there too")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="where results are kept (default: output/ablations/TABLE.json)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="keep masks and scores there: other weights then need no network",
    )
    parser.add_argument(
        "--train", action="store_true", help="train first what a row lacks and says how to make"
    )
    parser.add_argument("--fresh", action="store_true", help="measure anew what was measured before")
    parser.add_argument(
        "--dry-run", action="store_true", help="measure nothing: resolve every row and say what it lacks"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; the status is 1 where a row could not be measured (but for --dry-run)."""
    from twostage import build
    from twostage.data.atomic import replacing
    from twostage.runs import ablation
    from twostage.runs.ablation_results import markdown
    from twostage.runs.ablation_table import read_table

    logging.getLogger("twostage").setLevel(logging.INFO)
    table = read_table(options.table, options.set)
    results = options.results or default_results(options.table)
    train = build.train if options.train and not options.dry_run else None
    wanted = ablation.Options(results, options.store, options.fresh, options.dry_run, train)
    measured = ablation.measure(table, wanted)
    text = markdown(table, measured.found, measured.problems)
    print(text, end="")
    if options.out:
        with replacing(options.out) as stream:
            stream.write(text.encode("utf-8"))
    return 1 if measured.problems and not options.dry_run else 0


def default_results(table: Path) -> Path:
    """output/ablations/NAME.json; with the folder's name where tables lie deeper than configs/ablations."""
    folder = table.resolve().parent.name
    name = table.stem if folder == "ablations" else f"{folder}_{table.stem}"
    return Path("output", "ablations", f"{name}.json")
