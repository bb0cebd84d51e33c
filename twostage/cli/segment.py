"""twostage segment PHOTO... --classes "cat, sofa, other" -o out/"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.progress import track

from twostage.errors import TwostageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def add_commands(commands: Any) -> None:
    """Register `segment`."""
    parser = commands.add_parser(
        "segment",
        help="label the pixels of photos with your words",
        description="Write NAME_overlay.png, NAME_labels.png and NAME.json for every photo.",
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, or folders of photos")
    parser.add_argument(
        "--classes", help='words, as in "cat, sofa|couch, other", or a .txt file with one class a line; '
        "the default is what the system was trained on, where it says so"
    )
    parser.add_argument("--model", default="shapes", help="a system of `twostage models`, or a configuration file")
    parser.add_argument("-o", "--out", default="out", type=Path, help="output folder (default: out)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Segment all photos; one bad photo does not stop the others, but the exit status tells of it."""
    from twostage import zoo
    from twostage.data.image_io import read_image
    from twostage.predict import as_vocabulary, load
    from twostage.visualize import write_segmentation

    photos = find_photos(options.photos)
    classes = as_vocabulary(options.classes) if options.classes else _own_words(options.model)
    system = load(options.model, options.set)
    if options.model in zoo.names():
        print(zoo.describe(options.model))
    words = system.words(classes)
    failed: list[str] = []
    for stem, photo in track(output_names(photos), description="Segmenting", disable=len(photos) < 2):
        try:
            image = read_image(photo)
            result = system.segment(image, words.vocabulary)
            files = write_segmentation(options.out, stem, image, result, words.vocabulary)
            if len(photos) <= 5:
                print(f"{photo} -> {files.overlay}")
        except (TwostageError, OSError) as error:
            failed.append(f"{photo}: {error}")
    print(f"{len(photos) - len(failed)} of {len(photos)} photos written to {options.out}")
    for line in failed:
        print(f"Failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def find_photos(places: list[str]) -> list[Path]:
    """Files as given, folders searched for photos.

    Raises:
        TwostageError: a place that is not there, or a folder without photos.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            inside = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise TwostageError(f"{place} holds no photos ({', '.join(SUFFIXES)}).")
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def output_names(photos: list[Path]) -> list[tuple[str, Path]]:
    """A name for the files of each photo: its stem, numbered where two photos share one."""
    taken: dict[str, int] = {}
    named = []
    for photo in photos:
        count = taken[photo.stem] = taken.get(photo.stem, 0) + 1
        named.append((photo.stem if count == 1 else f"{photo.stem}_{count}", photo))
    return named


def _own_words(model: str) -> Any:
    from twostage.data.shapes.classes import vocabulary

    if model == "shapes":
        return vocabulary()
    raise TwostageError('Say which words to look for, as in --classes "cat, sofa, other".')
