"""twostage bench --pareto: accuracy against time of the region classifiers, on your own data."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from twostage.errors import TwostageError


def add_commands(commands: Any) -> None:
    """Register `bench`."""
    parser = commands.add_parser(
        "bench",
        help="compare the region classifiers on your data: accuracy, time, equal labels",
        description="With --pareto: classify the same masks of the same photos with several region "
        "classifiers and write pareto.json, pareto.md and pareto.png. Compared with the first, `crops` in "
        "float32: every mask cut out and shown to CLIP.",
    )
    parser.add_argument(
        "--pareto", action="store_true", help="accuracy against time (what there is to bench)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="shapes", help="a system of `twostage models` (default: shapes)")
    source.add_argument("--config-file", type=Path, help="a configuration file instead")
    parser.add_argument(
        "--data",
        metavar="NAME",
        help="a data set with ground truth: a catalog name, or folder:PATH@SPLIT; default: the first of "
        "DATASETS.TEST, shapes_val for --model shapes",
    )
    parser.add_argument(
        "--classifiers",
        nargs="+",
        default=[],
        metavar="NAME[:OPTION=VALUE,...]",
        help="as in: query pooled:level=values,short_edge=160 cascade:margin=0.3,pooled.level=logits "
        "crops:dtype=bf16; default: one of everything",
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="the first N photos; default: all")
    parser.add_argument(
        "--rounds", type=int, default=1, help="times that each photo is classified; the median counts"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="the time that passed, or processor time where other work disturbs (pareto.json has both)",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("output/pareto"), help="folder (default: output/pareto)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, write the files.

    Raises:
        TwostageError: an unknown classifier or option, no photos, no stage one, no ground truth.
    """
    from twostage.config import load_config
    from twostage.data import catalog
    from twostage.engine.distributed import pick_device
    from twostage.predict import config_path
    from twostage.runs import pareto, pareto_report
    from twostage.runs.pareto_candidates import candidates

    if not options.pareto:
        raise TwostageError("bench: say what to bench: twostage bench --pareto.")
    if options.limit < 0 or options.rounds < 1:
        raise TwostageError(
            f"bench: --limit must not be negative and --rounds at least 1, got {options.limit} and "
            f"{options.rounds}."
        )
    logging.getLogger("twostage").setLevel(logging.INFO)
    config = load_config(config_path(str(options.config_file or options.model)), options.set)
    chosen = candidates(config, options.classifiers, pick_device(config.model.device))
    dataset = catalog.get(_data(options, config), config.datasets.root)
    found = pareto.measure(config, dataset, chosen, options.limit, options.rounds)
    entries = pareto_report.write(options.out, config, dataset, found, options.rounds, options.clock)
    print(pareto_report.table(entries, options.clock))
    for name, reason in found.skipped.items():
        print(f"Left out: {name}: {reason}")
    print(f"{found.images} photos of {dataset.name} -> {options.out / 'pareto.json'}, pareto.md, pareto.png")
    return 0


def _data(options: argparse.Namespace, config: Any) -> str:
    """The data set to measure on.

    Raises:
        TwostageError: nobody names one.
    """
    if options.data:
        return str(options.data)
    if config.datasets.test:
        return str(config.datasets.test[0])
    if options.config_file is None and options.model == "shapes":
        return "shapes_val"
    raise TwostageError(
        'bench: name photos with ground truth, as in --data shapes_val or --data "folder:mine@val" (or '
        "DATASETS.TEST of the configuration)."
    )
