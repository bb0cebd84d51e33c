"""Looks through a whole folder data set before time is spent on it, and reports everything wrong at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from twostage.data import folder_layout
from twostage.data.check_report import Report, SplitReport
from twostage.data.class_list import FILE_NAME, ClassList, read_class_list
from twostage.data.errors import ImageReadError
from twostage.data.folder import size_disagreement
from twostage.data.image_io import read_image, read_label_png

Progress = Callable[[int, int], None]
"""Called with the number of finished pairs and of all pairs, after each."""


def check_dataset(
    dataset_path: str | Path, split: str | None = None, workers: int = 4, progress: Progress | None = None
) -> Report:
    """Read every image and mask of PATH (or PATH@SPLIT); without a split, of all its splits.

    Raises:
        DatasetError: the folder, classes.json or the split itself is unusable, so that nothing can be
        counted.
    """
    root, split = split_path(dataset_path, split)
    folder_layout.require_layout(root)
    classes = read_class_list(root / FILE_NAME)
    chosen: Iterable[str | None]
    chosen = [folder_layout.choose_split(root, split)] if split else folder_layout.splits(root) or [None]
    listings = {name: folder_layout.list_files(root, name) for name in chosen}
    total = sum(len(listing.images) for listing in listings.values())
    done = 0
    reports = []
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for name, listing in listings.items():
            tally = _Tally(classes)
            for found in pool.map(lambda pair: _look(pair, classes), _pairs(listing)):
                tally.add(found)
                done += 1
                if progress is not None:
                    progress(done, total)
            reports.append(tally.report(name or "", listing))
    return Report(str(root), classes.vocabulary.shown, tuple(reports))


def split_path(dataset_path: str | Path, split: str | None = None) -> tuple[Path, str | None]:
    """PATH@SPLIT in two; a folder whose own name has an @ stays whole."""
    text = str(dataset_path).removeprefix("folder:")
    path, at, named = text.rpartition("@")
    if split is not None or not at or Path(text).is_dir():
        return Path(text), split
    return Path(path), named


@dataclass(frozen=True)
class _Found:
    """What one image and its mask say: pixels of each class, ignored pixels, and problems by kind."""

    pixels: np.ndarray | None = None
    ignored: int = 0
    problems: tuple[tuple[str, str], ...] = ()


@dataclass
class _Tally:
    classes: ClassList
    readable: int = 0
    ignored: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.classes.vocabulary), dtype=np.int64)
        self.images = np.zeros(len(self.classes.vocabulary), dtype=np.int64)

    def add(self, found: _Found) -> None:
        """Count one pair."""
        for kind, text in found.problems:
            self.problems.setdefault(kind, []).append(text)
        if found.pixels is not None:
            self.readable += 1
            self.pixels += found.pixels
            self.images += found.pixels > 0
            self.ignored += found.ignored

    def report(self, name: str, listing: folder_layout.Listing) -> SplitReport:
        """The counts, with what the file names alone tell."""
        problems = dict(self.problems)
        if not listing.images:
            problems["no images"] = [f"images/{name}"]
        for kind, names in _by_name(listing).items():
            if names:
                problems[kind] = names
        pixels, images = tuple(self.pixels.tolist()), tuple(self.images.tolist())
        return SplitReport(name, len(listing.images), self.readable, pixels, images, self.ignored, problems)


def _pairs(listing: folder_layout.Listing) -> list[tuple[Path, Path | None]]:
    return [(paths[0], listing.masks.get(stem, [None])[0]) for stem, paths in listing.images.items()]


def _by_name(listing: folder_layout.Listing) -> dict[str, list[str]]:
    images, masks = listing.images, listing.masks
    doubles = [paths for kind in (images, masks) for paths in kind.values() if len(paths) > 1]
    return {
        "image without mask": [str(paths[0]) for stem, paths in images.items() if stem not in masks],
        "mask without image": [str(paths[0]) for stem, paths in masks.items() if stem not in images],
        "same stem twice": [" and ".join(map(str, paths)) for paths in doubles],
        "file of another kind": [str(path) for path in listing.strays],
    }


def _look(pair: tuple[Path, Path | None], classes: ClassList) -> _Found:
    image_path, mask_path = pair
    problems: list[tuple[str, str]] = []
    image_hw = None
    try:
        image_hw = tuple(read_image(image_path).shape[1:])
    except ImageReadError as error:
        problems.append(("unreadable", str(error)))
    if mask_path is None:
        return _Found(problems=tuple(problems))
    try:
        raw = read_label_png(mask_path)
    except ImageReadError as error:
        return _Found(problems=(*problems, ("unreadable", str(error))))
    mask_hw = tuple(raw.shape)
    if image_hw is not None and image_hw != mask_hw:
        problems.append(("sizes differ", size_disagreement(image_path, image_hw, mask_path, mask_hw)))
    strange = classes.undeclared(raw)
    if strange:
        shown = ", ".join(map(str, strange[:10])) + (", ..." if len(strange) > 10 else "")
        problems.append(("undeclared values", f"{mask_path}: {shown}"))
    labels = classes.to_labels(raw, str(mask_path), undeclared="ignore").numpy()
    counts = np.bincount(labels.ravel() + 1, minlength=len(classes.vocabulary) + 1)
    return _Found(counts[1:], int(counts[0]), tuple(problems))
