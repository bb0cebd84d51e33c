"""What is to be made: one item a label map, one split a folder of them. Plain data that crosses processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostage.data import presence
from twostage.data.benchmarks import BENCHMARKS, Benchmark
from twostage.data.errors import DatasetError
from twostage.vocabulary import nearest


@dataclass(frozen=True)
class Request:
    """What somebody asks for.

    root: the folder of all data sets; splits: names, none means all; allow_partial: missing files become
    warnings, and objects without a name are ignored.
    """

    root: Path
    splits: tuple[str, ...] = ()
    allow_partial: bool = False

    def choose(self, class_list: str) -> list[Benchmark]:
        """The rows of the table with this class list whose splits are asked for, in the table's order.

        Raises:
            DatasetError: a split is asked for that the data set does not have.
        """
        rows = {Path(row.labels).name: row for row in BENCHMARKS.values() if row.class_list == class_list}
        for name in self.splits:
            if name not in rows:
                raise DatasetError(f"{class_list}: there is no split {name!r}.{nearest(name, rows)}")
        return [row for name, row in rows.items() if not self.splits or name in self.splits]


@dataclass(frozen=True)
class Item:
    """One label map to make.

    image: the photo that it has to fit; source: the published annotation, as errors name it; target: where
    it goes; extra: whatever else the converter needs, picklable.
    """

    stem: str
    image: Path
    source: Path
    target: Path
    extra: Any = None


class Converter(ABC):
    """Reads one published annotation; picklable, the same in every process."""

    @abstractmethod
    def labels(self, item: Item) -> NDArray[np.integer]:
        """(H, W), 0..K-1, and the class list's ignored number where there is no class.

        Raises:
            DataError: the annotation is broken, or has values that no class stands for; names the file.
        """

    def write_image(self, item: Item) -> None:  # noqa: B027 - nothing to do is the common case
        """Write `item.image`, where a data set prepares its photos too."""


@dataclass(frozen=True)
class Split:
    """The label maps of one row of the table; photos: the folder of photos that are prepared too."""

    benchmark: Benchmark
    root: Path
    converter: Converter
    items: tuple[Item, ...]
    photos: Path | None = None

    @property
    def title(self) -> str:
        """How reports call it."""
        return self.benchmark.name

    @property
    def folder(self) -> Path:
        """Where the label maps go."""
        return self.benchmark.label_folder(self.root)

    @property
    def words(self) -> tuple[str, ...]:
        """The K names."""
        return self.benchmark.classes.vocabulary.shown

    @property
    def index(self) -> Path:
        """The file that says which classes each map has; it stands only beside a folder that is whole."""
        return presence.index_path(self.folder)

    @property
    def histogram(self) -> Path:
        """The file with pixels and images of each class."""
        return self.folder.with_name(f"{self.folder.name}.histogram.json")
