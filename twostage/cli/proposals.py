"""twostage proposals PHOTO... --source sam: what a source of masks finds, drawn, counted and stored."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from twostage.errors import TwostageError


def add_commands(commands: Any) -> None:
    """Register `proposals`."""
    parser = commands.add_parser(
        "proposals",
        help="draw and count the masks that a source proposes, without naming them",
        description="Write NAME_overlay.png and NAME_masks.png for every photo and the masks themselves, and "
        "print how many there are, how large, and how much they cover; with --labels also how well they "
        "meet the truth.",
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of photos")
    parser.add_argument(
        "--source", help="one of `twostage components`, or your.package:Class; default: the model's own"
    )
    parser.add_argument(
        "--model",
        help="a system of `twostage models`, or a configuration file; default: shapes where the source is "
        "maskformer, otherwise the defaults of all options",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options of the source, or of the configuration: points_per_side=16 INPUT.MIN_SIZE_TEST=640",
    )
    _add_truth(parser)
    _add_output(parser)
    parser.set_defaults(run=run)


def _add_truth(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--labels",
        type=Path,
        help="ground truth: a label map, or a folder of them, PNGs of the photos' names",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        nargs="+",
        default=[255, 65535],
        metavar="VALUE",
        help="values of label maps that are no region (default: 255 65535)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save",
        default="npz",
        choices=("npz", "coco", "none"),
        help="how masks are stored, for PROPOSALS.NAME cached: OUT/masks/NAME.npz (default), OUT/masks.json, "
        "not at all",
    )
    parser.add_argument(
        "--sheet",
        type=int,
        default=11,
        help="how many of the best masks NAME_masks.png shows; 0 for no sheet",
    )
    parser.add_argument("-o", "--out", default="out", type=Path, help="output folder (default: out)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")


def run(options: argparse.Namespace) -> int:
    """Look at all photos; one bad photo does not stop the others, but the exit status tells of it."""
    from twostage import registry
    from twostage.config import load_config
    from twostage.data.photo_list import find_photos, output_names
    from twostage.evaluation.report import proposal_table
    from twostage.predict import config_path
    from twostage.runs.proposal_report import Report, Trial, Truth, total

    if options.sheet < 0:
        raise TwostageError(f"--sheet: expected 0 or more masks, got {options.sheet}.")
    photos = find_photos(options.photos, options.out)
    component = None if options.source is None else registry.find("proposals", options.source)
    model = options.model or ("shapes" if options.source in (None, "maskformer") else None)
    words = [] if options.source is None else [f"PROPOSALS.NAME={options.source}"]
    words += own_options(component, options.set)
    config = load_config(None if model is None else config_path(model), words)
    truth = None if options.labels is None else Truth(options.labels, photos, options.ignore)
    trial = Trial(config, options.out, options.save, truth, options.sheet)
    reports: list[Report] = []
    failed: list[str] = []
    for stem, photo in track(output_names(photos), description="Proposing", disable=len(photos) < 2):
        try:
            reports.append(trial.look(photo, stem))
        except (TwostageError, OSError) as error:
            told = str(error)
            failed.append(told if str(photo) in told else f"{photo}: {told}")
    trial.finish()
    rows = [report.row() for report in reports]
    whole = total(reports)
    if rows:
        print(proposal_table([*rows, *([whole] if len(rows) > 1 else [])], truth is not None))
    print(f"{len(reports)} of {len(photos)} photos drawn to {options.out}", end="")
    print("" if trial.stored is None else f", masks for PROPOSALS.NAME cached in {trial.stored}")
    if options.json:
        write_json(
            options.json, {"source": dataclasses.asdict(config.proposals), "photos": rows, "all": whole}
        )
    for line in failed:
        print(f"Failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def own_options(component: type | None, words: Sequence[str]) -> list[str]:
    """Overrides of the configuration, where the source's options may be called by their bare names.

    Raises:
        ConfigError: a bare name that is an option of neither.
    """
    from twostage.config import Config, ConfigError
    from twostage.vocabulary import nearest

    if component is None:
        return list(words)
    known = [field.name for field in dataclasses.fields(component.Config)]  # type: ignore[attr-defined]
    general = [field.name for field in dataclasses.fields(Config)]
    found = []
    for word in words:
        key, equals, _ = word.partition("=")
        if equals and "." not in key and key.lower() not in (*known, *general):
            raise ConfigError(f"--set: {component.__name__} has no option {key!r}.{nearest(key, known)}")
        found.append(f"PROPOSALS.OPTIONS.{word}" if key.lower() in known else word)
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    from twostage.data.atomic import replacing

    with replacing(path) as stream:
        stream.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
