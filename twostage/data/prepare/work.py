"""One label map, from its published annotation to the finished file; runs in any process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twostage.data.errors import DataError, ImageReadError, LabelError
from twostage.data.image_io import read_image, read_label_png, write_label_png
from twostage.data.prepare.plan import Converter, Item, Split
from twostage.types import VOID

_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Task:
    """What is the same for all items of a split. check_only: compare, write nothing."""

    converter: Converter
    classes: int
    void: int
    force: bool = False
    check_only: bool = False

    @classmethod
    def of(cls, split: Split, force: bool, check_only: bool) -> Task:
        return cls(split.converter, len(split.words), split.benchmark.void, force, check_only)


@dataclass(frozen=True)
class Outcome:
    """What became of one item: pixels of each class there is, ignored pixels, a warning or an error."""

    stem: str
    pixels: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    written: bool = False
    note: str = ""
    problem: str = ""


def work(item: Item, task: Task) -> Outcome:
    """Make one label map (or find it made); what is wrong with its files is said in `problem`."""
    try:
        if task.check_only:
            labels, note = _check(item, task)
            return _count(item, labels, task, note)
        labels_there = None if task.force else _finished(item, task)
        if labels_there is not None:
            return _count(item, labels_there, task, _fits(item, labels_there.shape))
        return _make(item, task)
    except DataError as error:
        return Outcome(item.stem, problem=str(error))
    except OSError as error:
        return Outcome(item.stem, problem=f"{item.target}: cannot be made ({error}).")


def image_sizes_hw(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a photo, upright as its EXIF orientation says and as stored; reads the header only.

    Raises:
        ImageReadError: missing or not an image.
    """
    try:
        with Image.open(path) as image:
            stored = (image.height, image.width)
            turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageReadError(f"{path}: not a photo that can be read ({error}). Unpack it again.") from error
    return (stored[::-1] if turned else stored), stored


def _finished(item: Item, task: Task) -> NDArray[np.integer] | None:
    """The labels of an earlier run; None where there are none, or none that can be right."""
    if not item.target.is_file() or not item.image.is_file():
        return None
    try:
        labels = read_label_png(item.target).numpy()
    except ImageReadError:
        return None
    right_values = ((labels < task.classes) | (labels == task.void)).all()
    return labels if right_values and labels.shape in image_sizes_hw(item.image) else None


def _make(item: Item, task: Task) -> Outcome:
    labels = task.converter.labels(item)
    # The photo goes first: where there is a label map, everything of the item is there.
    task.converter.write_image(item)
    note = _fits(item, labels.shape)
    void_marked = np.where(labels == task.void, VOID, labels.astype(np.int32))
    write_label_png(item.target, void_marked, void=task.void)
    return _count(item, labels, task, note, written=True)


def _check(item: Item, task: Task) -> tuple[NDArray[np.integer], str]:
    """The finished labels, compared with what the annotation says now; the photo is decoded whole."""
    if not item.target.is_file():
        raise LabelError(f"{item.target}: not prepared yet. Run again without --check-only.")
    labels = read_label_png(item.target).numpy()
    published = task.converter.labels(item)
    if labels.shape != published.shape or (labels != published).any():
        raise LabelError(f"{item.target}: differs from what {item.source} says. Run again with --force.")
    read_image(item.image)
    return labels, _fits(item, labels.shape)


def _fits(item: Item, shape_hw: tuple[int, ...]) -> str:
    """A warning where the labels fit the photo only as stored, not as its EXIF orientation turns it.

    Raises:
        LabelError: they do not fit at all.
    """
    upright, stored = image_sizes_hw(item.image)
    if shape_hw == upright:
        return ""
    if shape_hw == stored:
        return f"{item.image}: its EXIF orientation turns it away from its labels; remove the tag."
    raise LabelError(
        f"{item.source}: {shape_hw[1]} x {shape_hw[0]} pixels (width x height), but its photo {item.image} "
        f"has {upright[1]} x {upright[0]}. Are both of the same release?"
    )


def _count(
    item: Item, labels: NDArray[np.integer], task: Task, note: str = "", written: bool = False
) -> Outcome:
    counts = np.bincount(labels.reshape(-1), minlength=task.void + 1)
    present = np.flatnonzero(counts[: task.classes])
    pixels = {int(place): int(counts[place]) for place in present}
    return Outcome(item.stem, pixels, int(counts[task.void]), written, note)
