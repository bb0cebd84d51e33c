"""twostage dense list, show PHOTO, calibrate: the published ways to read CLIP patch by patch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage.errors import TwostageError

if TYPE_CHECKING:
    from twostage.readout.preset import Preset


def add_commands(commands: Any) -> None:
    """Register `dense list`, `dense show` and `dense calibrate`."""
    parser = commands.add_parser(
        "dense", help="the dense readouts of CLIP: list them, see them side by side, calibrate one"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every readout, where it comes from and what it needs")
    listing.add_argument("--json", action="store_true", help="everything there is to know, as JSON")
    listing.set_defaults(run=listed)
    show = actions.add_parser(
        "show",
        help="a contact sheet of several readouts of one photo",
        description="Write one PNG: for each readout its labels, how sure it is, and where the leading "
        "classes lie.",
    )
    show.add_argument("photo", type=Path, metavar="PHOTO")
    show.add_argument(
        "--classes",
        help='words, as in "cat, sofa|couch, other", or a .txt file with one class a line; not needed with '
        "--model shapes",
    )
    show.add_argument(
        "--presets", help="names of `twostage dense list`, separated by commas; default: all that look once"
    )
    show.add_argument(
        "--guest", default="", help="second vision model of readouts that ask one, such as timm:MODEL or clip"
    )
    source = show.add_mutually_exclusive_group()
    source.add_argument("--model", default="dense-vit-b16", help="a system of `twostage models`")
    source.add_argument("--config-file", type=Path, help="a configuration file instead")
    show.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration"
    )
    show.add_argument("--top", type=int, default=3, help="classes with a map of their own (default: 3)")
    show.add_argument("-o", "--out", type=Path, default=Path("dense.png"), help="default: dense.png")
    show.set_defaults(run=shown)
    _add_calibrate(actions)


def _add_calibrate(actions: Any) -> None:
    calibrate = actions.add_parser(
        "calibrate",
        help="the dense temperature that fits the region classifier's, without labels",
        description="Find the ENSEMBLE.OPTIONS.DENSE_TEMPERATURE with which the dense map, pooled under "
        "masks, is as sure on average as the region classifier. Looks at photos only.",
    )
    calibrate.add_argument(
        "--config-file", type=Path, required=True, help="one with masks, a classifier and a dense head"
    )
    calibrate.add_argument("--photos", type=int, default=32, help="how many to look at (default: 32)")
    calibrate.add_argument("--dataset", default="", help="whose photos; default: the first of DATASETS.TRAIN")
    calibrate.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration"
    )
    calibrate.set_defaults(run=calibrated)


def calibrated(options: argparse.Namespace) -> int:
    """Print the temperature and what it was found on.

    Raises:
        TwostageError: a part is missing, or there are no photos.
    """
    from twostage.config import load_config
    from twostage.runs.calibration import calibrate

    found = calibrate(load_config(options.config_file, options.set), options.photos, options.dataset)
    print(found.report())
    return 0


def listed(options: argparse.Namespace) -> int:
    """The table for people, or JSON."""
    from twostage.readout.catalogue import describe
    from twostage.readout.presets import PRESETS

    everything = [describe(preset) for preset in PRESETS.values()]
    if options.json:
        print(json.dumps(everything, indent=1, ensure_ascii=False))
        return 0
    from rich.console import Console

    from twostage.cli.dense_table import figures, paragraphs

    console = Console(highlight=False)
    console.print(figures(everything))
    for paragraph in paragraphs(everything):
        console.print(paragraph)
    return 0


def chosen(names: str | None) -> list[Preset]:
    """The readouts of a list with commas; without one all that look once and need no helper.

    Raises:
        TwostageError: an unknown name, or none at all.
    """
    from twostage.readout import presets

    if names is None:
        return [one for one in presets.PRESETS.values() if one.single_pass and not (one.guest or one.regions)]
    wanted = dict.fromkeys(name.strip() for name in names.split(",") if name.strip())
    if not wanted:
        raise TwostageError("--presets is empty: name some of `twostage dense list`, separated by commas.")
    return [presets.find(name) for name in wanted]


def shown(options: argparse.Namespace) -> int:
    """Write the sheet.

    Raises:
        TwostageError: an unknown readout, one that the system's CLIP or parts cannot serve, no words.
    """
    from twostage.cli.segment import own_words
    from twostage.data.image_io import read_image
    from twostage.predict import as_vocabulary, config_path, load
    from twostage.visualize.dense_sheet import DenseView, dense_sheet
    from twostage.visualize.files import write_picture

    if options.top < 0:
        raise TwostageError(f"--top: expected 0 or more classes, got {options.top}.")
    presets = chosen(options.presets)
    model = str(options.config_file or options.model)
    config_path(model)
    classes = own_words(model) if options.classes is None else as_vocabulary(options.classes)
    image = read_image(options.photo)
    system = load(model, options.set)
    words = system.words(classes)
    views = []
    for preset in presets:
        reader = system.read_with(preset.name, options.guest if preset.guest else "")
        found, logits = reader.look(image, words.vocabulary)
        views.append(DenseView(f"{preset.title}: {preset.name}", logits, found.labels))
    write_picture(options.out, dense_sheet(image, views, words.vocabulary, options.top))
    print(f"{len(views)} readouts -> {options.out}")
    return 0
