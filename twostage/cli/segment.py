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
        "--classes",
        help='words, as in "cat, sofa|couch, other", or a .txt file with one class a line; '
        "the default is what the system was trained on, where it says so",
    )
    parser.add_argument(
        "--model", default="shapes", help="a system of `twostage models`, or a configuration file"
    )
    parser.add_argument("-o", "--out", default="out", type=Path, help="output folder (default: out)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration"
    )
    parser.add_argument(
        "--onnx", type=Path, metavar="FOLDER", help="run what `twostage export` wrote, in place of --model"
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of onnxruntime, with --onnx (default: torch's)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Segment all photos; one bad photo does not stop the others, but the exit status tells of it."""
    from twostage import zoo
    from twostage.data.image_io import read_image
    from twostage.predict import as_vocabulary, config_path, load
    from twostage.visualize import write_segmentation

    photos = find_photos(options.photos, options.out)
    if options.onnx is not None:
        from twostage.export.deployed import open_folder

        system, classes = open_folder(options.onnx, options.classes, options.set, options.threads)
    else:
        config_path(options.model)  # a misspelt system is said before its words are asked for
        classes = own_words(options.model) if options.classes is None else as_vocabulary(options.classes)
        system = load(options.model, options.set)
        if options.model in zoo.names():
            print(zoo.describe(options.model))
    words = system.words(classes)
    failed: list[str] = []
    for stem, photo in track(output_names(photos), description="Segmenting", disable=len(photos) < 2):
        try:
            image = read_image(photo)
            result = system.segment(image, words.vocabulary, photo.stem)
            files = write_segmentation(options.out, stem, image, result, words.vocabulary)
            if len(photos) <= 5:
                print(f"{photo} -> {files.overlay}")
        except (TwostageError, OSError) as error:
            told = str(error)
            failed.append(told if str(photo) in told else f"{photo}: {told}")
    print(f"{len(photos) - len(failed)} of {len(photos)} photos written to {options.out}")
    for line in failed:
        print(f"Failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def find_photos(places: list[str], out: Path) -> list[Path]:
    """Files as given, readable or not; folders searched for photos, except where the output goes.

    Raises:
        TwostageError: a folder without photos, or nothing but places that are not there.
    """
    found: list[Path] = []
    if not any(Path(place).exists() for place in places):
        raise TwostageError(f"No such file or folder: {', '.join(places)}.")
    own = out.resolve()
    for place in map(Path, places):
        if place.is_dir():
            photos = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            inside = sorted(p for p in photos if own == place.resolve() or own not in p.resolve().parents)
            if not inside:
                raise TwostageError(f"{place} holds no photos ({', '.join(SUFFIXES)}).")
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def output_names(photos: list[Path]) -> list[tuple[str, Path]]:
    """A name for the files of each photo: its stem, numbered where two photos share one."""
    stems = {photo.stem for photo in photos}
    taken: set[str] = set()
    named = []
    for photo in photos:
        name, count = photo.stem, 1
        while name in taken or (count > 1 and name in stems):
            count += 1
            name = f"{photo.stem}_{count}"
        taken.add(name)
        named.append((name, photo))
    return named


def own_words(model: str) -> Any:
    """The words that a system was trained on, where it says so.

    Raises:
        TwostageError: it does not.
    """
    from twostage.data.shapes.classes import vocabulary

    if model == "shapes":
        return vocabulary()
    raise TwostageError('Say which words to look for, as in --classes "cat, sofa, other".')
