"""twostage segment PHOTO... --classes "cat, sofa, other" -o out/"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from twostage.data.photo_list import Shot, find_photos, read_list, shots_of
from twostage.errors import TwostageError

FEW, SOME = 5, 20
"""Photos of which each is told; and of those that failed."""


def add_commands(commands: Any) -> None:
    """Register `segment`."""
    parser = commands.add_parser(
        "segment",
        help="label the pixels of photos or of a video with your words",
        description="Write NAME_overlay.png, NAME_labels.png and NAME.json for every photo. What is done "
        "already is left alone, so an interrupted run goes on where it stopped.",
    )
    add = parser.add_argument
    add("photos", nargs="*", metavar="PHOTO", help="photos, or folders of photos")
    add("--onnx", type=Path, metavar="FOLDER", help="run what `twostage export` wrote, in place of --model")
    add("--threads", type=int, default=0, help="of onnxruntime, with --onnx (default: torch's)")
    add("--max-memory", type=float, metavar="GIB", help="for stage two beside the networks (TEST.MEMORY_GIB)")
    add("--list", metavar="FILE", help="text file with a photo or folder a line; - is the standard input")
    add("--video", metavar="FILE", help="a video instead of photos; NAME_000012.json is of its frame 12")
    add("--every", type=int, metavar="N", help="every n-th frame of the video (default: 1)")
    add("--film", action="store_true", help="join the labelled frames to NAME_overlay.mp4 too")
    add(
        "--classes",
        help='words, as in "cat, sofa|couch, other", or a .txt file with one class a line; '
        "the default is what the system was trained on, where it says so",
    )
    add("--model", default="shapes", help="a system of `twostage models`, or a configuration file")
    add("-o", "--out", default="out", type=Path, help="output folder (default: out)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of the configuration")
    add("--again", action="store_true", help="label anew what is done already")
    parser.set_defaults(run=run, misused=parser.error)


def run(options: argparse.Namespace) -> int:
    """Segment all photos; one bad photo does not stop the others, but the exit status tells of it: 1, or
    128 + the number of the signal that stopped it.
    """
    from twostage.data.atomic import sweep
    from twostage.runs.finished import Finished

    _check(options)
    if not options.video:  # a misspelt photo is said first
        photos = find_photos(
            [*options.photos, *(read_list(options.list) if options.list else [])], options.out
        )
    chosen = _chosen(options)
    finished = Finished(options.out, chosen.made_by, options.again)
    sweep(options.out)
    if options.video:
        return _segment_video(options, chosen, finished)
    return _segment_photos(options, photos, chosen, finished)


@dataclass(frozen=True)
class Chosen:
    """classes: the words; load: what labels photos, made when it is needed; made_by: digests of what labels
    depend on beside the photo, by the name that a message gives it; about: a line on the system, or "".
    """

    classes: Any
    load: Callable[[], Any]
    made_by: dict[str, str]
    about: str = ""


def _chosen(options: argparse.Namespace) -> Chosen:
    """The one place where options become a system."""
    from twostage import zoo
    from twostage.clip.precision import preferred_dtype
    from twostage.config import load_config
    from twostage.engine.distributed import pick_device
    from twostage.predict import System, as_vocabulary, config_path
    from twostage.runs.digests import classes_digest, config_digest, measured_config

    if options.max_memory is not None:
        options.set = [*options.set, f"TEST.MEMORY_GIB={options.max_memory}"]
    if options.onnx is not None:
        return _exported(options)
    path = config_path(options.model)  # a misspelt system is said before its words are asked for
    classes = own_words(options.model) if options.classes is None else as_vocabulary(options.classes)
    config = load_config(path, options.set)
    made_by = {"classes": classes_digest(classes), "options": config_digest(measured_config(config))}
    about = zoo.describe(options.model) if options.model in zoo.names() else ""
    if config.clip.dtype == "auto":
        about += f"\nCLIP in {preferred_dtype(pick_device(config.model.device))[1]}."
    return Chosen(classes, lambda: System(config), made_by, about)


def _exported(options: argparse.Namespace) -> Chosen:
    """What `twostage export` wrote, in place of a system."""
    from twostage.download import digest_of
    from twostage.export.deployed import open_folder
    from twostage.runs.digests import classes_digest, config_digest, measured_config

    system, classes = open_folder(options.onnx, options.classes, options.set, options.threads)
    files = [digest_of(path) for path in sorted(options.onnx.iterdir()) if path.is_file()]
    digest = config_digest(measured_config(system.config), *files)
    return Chosen(classes, lambda: system, {"classes": classes_digest(classes), "options": digest})


def _check(options: argparse.Namespace) -> None:
    """Ends the program with its usage where options do not go together."""
    if options.video and (options.photos or options.list):
        options.misused("give photos or --video, not both")
    if not (options.photos or options.list or options.video):
        options.misused("say what to segment: photos, folders, --list FILE or --video FILE")
    if not options.video and (options.every is not None or options.film):
        options.misused("--every and --film are for --video")
    if options.every is not None and options.every < 1:
        options.misused(f"--every: expected 1 or more, got {options.every}")


def _segment_photos(options: argparse.Namespace, photos: list[Path], chosen: Chosen, finished: Any) -> int:
    from twostage.data.image_io import read_image

    todo = list(finished.pending(shots_of(photos)))
    for line in finished.told(len(photos)):
        print(line)
    if not todo:
        return 0
    job = _job(options, chosen, finished)
    with _shown(len(todo)) as seen:
        outcome = job.run(todo, lambda shot: read_image(shot.path), seen)
    return _tell(options.out, outcome, len(todo))


def _segment_video(options: argparse.Namespace, chosen: Chosen, finished: Any) -> int:
    from twostage.data.video import Video
    from twostage.visualize.film import write_film

    every = options.every or 1
    with closing(Video(options.video)) as video:
        job = _job(options, chosen, finished)
        with _shown(-(-video.told // every)) as seen:
            todo = finished.pending(video.shots(every))
            outcome = job.run(todo, video.read, seen, threads=1)  # frames come in order
        if video.frames == 0:
            raise TwostageError(f"{video.path}: not one frame can be read. Save it as .mp4 (H.264) or .avi.")
        wanted = [] if video.frames is None else list(video.shots(every))
    for line in finished.told(len(wanted)) if wanted else ():
        print(line)
    status = _tell(options.out, outcome, len(wanted) - finished.done)
    if wanted and video.frames is not None and video.frames < video.told:
        print(
            f"{video.path}: {video.frames} frames of the {video.told} that it tells of could be read.",
            file=sys.stderr,
        )
    if options.film and wanted:
        with closing(Video(options.video)) as again:
            film = options.out / f"{again.path.stem}_overlay.mp4"
            print(write_film(film, job.frames(again, wanted), again.fps / every))
    return status


def _job(options: argparse.Namespace, chosen: Chosen, finished: Any) -> Any:
    """The loaded system with its words."""
    from twostage.runs.segmenting import Job

    system = chosen.load()
    if chosen.about:
        print(chosen.about)
    return Job(options.out, system, system.words(chosen.classes).vocabulary, finished)


@contextmanager
def _shown(total: int) -> Iterator[Any]:
    """Called after every photo: a bar where there are many or nobody knows (0), a line each for few."""
    few = 0 < total <= FEW
    with Progress(disable=few) as progress:
        task = progress.add_task("Segmenting", total=total or None)

        def seen(shot: Shot, where: str) -> None:
            progress.advance(task)
            if few and where:
                print(f"{shot} -> {where}")

        yield seen


def _tell(out: Path, outcome: Any, total: int) -> int:
    """What became of the photos, and the exit status."""
    from twostage.runs.segmenting import FAILED

    asked = max(total, outcome.written + len(outcome.failed))
    print(f"{outcome.written} of {asked} photos written to {out}")
    for shot, reason in outcome.failed[:SOME]:
        print(f"Failed: {reason if str(shot) in reason else f'{shot}: {reason}'}", file=sys.stderr)
    if len(outcome.failed) > SOME:
        print(f"Failed: {len(outcome.failed) - SOME} more, see {out / FAILED}", file=sys.stderr)
    if outcome.stopped or outcome.signal:
        why = outcome.stopped or "as asked"
        print(f"Stopped: {why}. The same command goes on from here.", file=sys.stderr)
    return 128 + outcome.signal if outcome.signal else int(bool(outcome.failed or outcome.stopped))


def own_words(model: str) -> Any:
    """The words that a system was trained on, where it says so.

    Raises:
        TwostageError: it does not.
    """
    from twostage.data.shapes.classes import vocabulary

    if model == "shapes":
        return vocabulary()
    raise TwostageError('Say which words to look for, as in --classes "cat, sofa, other".')
