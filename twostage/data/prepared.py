"""A benchmark split from disk: photos as published, label maps as the preparation scripts made them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from twostage.data.benchmarks import BENCHMARKS, DERIVED, SEEN_ONLY, UNFLAGGED, Benchmark
from twostage.data.errors import DatasetError, LabelError
from twostage.data.folder import size_disagreement
from twostage.data.image_io import read_image, read_label_png
from twostage.data.presence import classes_present
from twostage.data.sample import Sample
from twostage.types import VOID

logger = logging.getLogger(__name__)


class PreparedDataset:
    """A SegmentationDataset over one row of the table of benchmarks; the label maps there are the split.

    root: the folder of all data sets; variant: "", or SEEN_ONLY or UNFLAGGED of the table.

    Raises:
        DatasetError: no label maps (with the command that makes them), or label maps without their photos.
    """

    def __init__(self, benchmark: Benchmark, root: str | Path, variant: str = "") -> None:
        self.benchmark = benchmark
        self.root = Path(root)
        self.name = benchmark.name + variant
        self.classes = benchmark.classes
        self.vocabulary = self.classes.vocabulary
        if variant == UNFLAGGED:
            self.vocabulary = replace(self.vocabulary, seen=None)
        self.files = _pairs(benchmark, self.root)
        if len(self.files) != benchmark.photos:
            logger.warning(
                "%s: %d label maps in %s, the complete data set has %d; numbers may not compare with "
                "published ones.",
                benchmark.name,
                len(self.files),
                benchmark.label_folder(self.root),
                benchmark.photos,
            )
        if variant == SEEN_ONLY:
            self._leave_out_unseen()

    @property
    def subsets(self) -> Mapping[str, tuple[int, ...]]:
        """Named groups of classes, as positions in the vocabulary, for reports."""
        return dict(self.benchmark.subsets)

    @property
    def image_ids(self) -> list[str]:
        """The ids in order, without reading an image."""
        return [label.stem for _, label in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Raises ImageReadError or LabelError naming the file; IndexError past the end."""
        image_path, label_path = self.files[index]
        image = read_image(image_path)
        raw = read_label_png(label_path)
        if raw.shape != image.shape[1:]:
            raise LabelError(size_disagreement(image_path, image.shape[1:], label_path, raw.shape))
        rest = self.vocabulary.background if self.benchmark.rest else None
        labels = self.classes.to_labels(raw, str(label_path), "error" if rest is None else "ignore")
        if rest is not None:
            labels[labels == VOID] = rest
        return Sample(image, labels, label_path.stem, str(image_path))

    def classes_present(self) -> list[tuple[int, ...]]:
        """The classes of each photo in order, ascending, from an index that is made once.

        Raises:
            DatasetError: the data set is another reading of these maps, and the index speaks of theirs.
        """
        if self.benchmark.name in DERIVED:
            raise DatasetError(
                f"{self.name} is for evaluation only: it reads the label maps of another data set "
                f"({self.benchmark.labels}). Train on that one."
            )
        present = classes_present(self.benchmark.label_folder(self.root), self.benchmark.void)
        return [present[label.stem] for _, label in self.files]

    def _leave_out_unseen(self) -> None:
        seen = self.vocabulary.seen
        if seen is None:
            raise DatasetError(f"{self.benchmark.name} has no seen flags: use the name without {SEEN_ONLY}.")
        present = self.classes_present()
        kept = [
            pair
            for pair, classes in zip(self.files, present, strict=True)
            if any(seen[one] for one in classes)
        ]
        logger.info("%s: %d of %d photos show a seen class", self.name, len(kept), len(self.files))
        self.files = kept


def _pairs(benchmark: Benchmark, root: Path) -> list[tuple[Path, Path]]:
    """(photo, label map) in the order of the label maps' names."""
    folder, image_folder = benchmark.label_folder(root), benchmark.image_folder(root)
    labels = sorted(path for path in folder.glob("*.png") if not path.name.startswith("."))
    prepare = f"python datasets/{benchmark.source.program} --root {root} --split {folder.name}"
    if not labels:
        raise DatasetError(
            f"{benchmark.name}: no label maps in {folder}, expected {benchmark.photos:,}. "
            f"Get the data ({benchmark.source.url}), then run: {prepare}"
        )
    photos = _photos(benchmark, image_folder)
    lacking = [path.stem for path in labels if path.stem not in photos]
    if lacking:
        raise DatasetError(
            f"{benchmark.name}: {len(lacking):,} of {len(labels):,} label maps in {folder} have no photo in "
            f"{image_folder} ({', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}). Unpack the "
            f"photos ({benchmark.source.url}) there; datasets/README.md shows the tree."
        )
    return [(photos[path.stem], path) for path in labels]


def _photos(benchmark: Benchmark, folder: Path) -> dict[str, Path]:
    """The photos in `folder` and below by the stem of their label map."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            stem = benchmark.label_stem(name)
            if stem is not None:
                found[stem] = Path(place, name)
    return found


def build(name: str, root: Path | None) -> PreparedDataset:
    """What the catalog calls for the names of the table, with or without an ending."""
    ending = next((one for one in (SEEN_ONLY, UNFLAGGED) if name.endswith(one)), "")
    table = {**BENCHMARKS, **DERIVED}
    return PreparedDataset(table[name.removesuffix(ending)], root or Path("datasets"), ending)
