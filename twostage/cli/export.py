"""twostage export --model shapes -o FOLDER: stage one and CLIP's image tower as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Register `export`."""
    parser = commands.add_parser(
        "export",
        help="write stage one and CLIP's image tower as ONNX files",
        description="Write stage_one.onnx, clip_image.onnx, words.npz and manifest.json, which `twostage "
        "segment --onnx FOLDER` runs. Text features are an input, so the words stay open (docs/onnx.md).",
    )
    parser.add_argument(
        "--model", default="shapes", help="a system of `twostage models`, or a configuration file"
    )
    parser.add_argument("-o", "--out", required=True, type=Path, metavar="FOLDER", help="output folder")
    parser.add_argument(
        "--classes",
        help="words whose text features are stored, so that they need no text tower: as in segment; the "
        "default is what the system was trained on, where it says so",
    )
    parser.add_argument("--opset", type=int, help="ONNX operator set, 18 or later; default: torch's choice")
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with torch by onnxruntime, and write nothing where they differ (default: on)",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, say what was compared, and list the files."""
    from twostage.cli.segment import own_words
    from twostage.config import load_config
    from twostage.export.write import export
    from twostage.predict import as_vocabulary, config_path

    config = load_config(config_path(options.model), options.set)
    classes = None
    if options.classes is not None:
        classes = as_vocabulary(options.classes)
    elif options.model == "shapes":
        classes = own_words(options.model)
    made = export(config, options.out, classes=classes, opset=options.opset, checked=options.check, say=print)
    for name in (*made.files, "manifest.json"):
        path = options.out / name
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    return 0
