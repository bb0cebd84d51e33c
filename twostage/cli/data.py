"""twostage data check FOLDER, and twostage data export NAME FOLDER."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.progress import Progress


def add_commands(commands: Any) -> None:
    """Register `data check` and `data export`."""
    parser = commands.add_parser("data", help="look into a data set, or write one out as plain files")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="count classes; find unreadable files, wrong sizes and labels")
    check.add_argument("folder", help="a folder with images/, masks/ and classes.json")
    check.add_argument("--split", help="only this split; the default is all")
    check.add_argument("--workers", type=int, default=4)
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
    check.set_defaults(run=run_check)
    export = actions.add_parser("export", help="write a data set as images, PNG masks and classes.json")
    export.add_argument("name", help="catalog name, such as shapes_test")
    export.add_argument("out", type=Path, help="output folder")
    export.add_argument("--split", help="name of the split in the folder; default: as it is called now")
    export.add_argument("--count", type=int, help="how many samples; default: all")
    export.set_defaults(run=run_export)


def run_check(options: argparse.Namespace) -> int:
    """Print the report; the status is 1 where something is wrong."""
    from twostage.data.atomic import replacing
    from twostage.data.check import check_dataset

    with Progress(transient=True) as bar:
        task = bar.add_task("Checking", total=None)
        report = check_dataset(
            options.folder,
            options.split,
            options.workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(report.format())
    if options.json:
        with replacing(options.json) as stream:
            stream.write(json.dumps(report.to_json(), indent=1).encode("utf-8"))
    return 0 if report.ok else 1


def run_export(options: argparse.Namespace) -> int:
    """Write the folder with progress."""
    from twostage.data import catalog
    from twostage.data.export import export_folder

    dataset = catalog.get(options.name)
    split = options.split or dataset.name.rpartition("@")[2]  # of "mine@val" the "val"
    with Progress(transient=True) as bar:
        task = bar.add_task("Writing", total=None)
        out = export_folder(
            dataset,
            options.out,
            split,
            options.count,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"{out}: read it back as folder:{out}@{split}")
    return 0
