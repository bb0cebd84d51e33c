"""Data sets by name. A name stands for a recipe that runs when asked for; importing reads nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from twostage.data.benchmarks import BENCHMARKS, DERIVED, VARIANTS
from twostage.data.errors import DatasetError
from twostage.data.sample import SegmentationDataset
from twostage.vocabulary import nearest

Factory = Callable[[Path | None], SegmentationDataset]
"""Called with the root folder of all data sets (or None) when somebody asks for the name."""

_FOLDER_PREFIX = "folder:"
_BUILT_IN: dict[str, tuple[str, dict[str, str]]] = {
    "shapes_train": ("twostage.data.shapes.dataset:build", {"split": "train"}),
    "shapes_val": ("twostage.data.shapes.dataset:build", {"split": "val"}),
    "shapes_test": ("twostage.data.shapes.dataset:build", {"split": "test"}),
}
_BENCHMARKS = (*BENCHMARKS, *DERIVED, *VARIANTS)
_registered: dict[str, Factory] = {}


def names() -> list[str]:
    """Every known name, sorted; "folder:PATH" and "folder:PATH@SPLIT" are understood besides.

    The benchmarks are those of twostage.data.benchmarks. The drawn sets take a seed, as in "shapes_test@1":
    other scenes of the same kind.
    """
    return sorted({*_BUILT_IN, *_BENCHMARKS, *_registered})


def register(name: str, factory: Factory) -> None:
    """Make `factory` answer to `name`.

    Raises:
        DatasetError: the name is taken, or would be read as a folder.
    """
    if not name or name.startswith(_FOLDER_PREFIX):
        raise DatasetError(
            f"Cannot register {name!r}: a name must not be empty nor begin with {_FOLDER_PREFIX!r}."
        )
    if name in names():
        raise DatasetError(f"A data set called {name!r} exists already. Choose another name.")
    _registered[name] = factory


def get(name: str, root: str | Path | None = None) -> SegmentationDataset:
    """The data set called `name`, or the folder in "folder:PATH" or "folder:PATH@SPLIT".

    root: the folder that relative folder paths and registered recipes start from.

    Raises:
        DatasetError: unknown name (the message has the nearest), or the data set itself is not usable.
    """
    base = None if root is None else Path(root)
    if name.startswith(_FOLDER_PREFIX):
        return _folder(name.removeprefix(_FOLDER_PREFIX), base)
    if name in _registered:
        return _registered[name](base)
    if name in _BENCHMARKS:
        from twostage.data.prepared import build as build_benchmark

        return build_benchmark(name, base)
    stem, _, seed = name.partition("@")
    if stem in _BUILT_IN and (seed.isdecimal() or name == stem):
        target, arguments = _BUILT_IN[stem]
        module, _, function = target.partition(":")
        build = getattr(importlib.import_module(module), function)
        built: SegmentationDataset = build(**arguments, seed=int(seed or 0))
        return built
    raise DatasetError(
        f'Unknown data set {name!r}.{nearest(name, names())} A folder of your own is "folder:PATH" or '
        '"folder:PATH@SPLIT".'
    )


def _folder(place: str, base: Path | None) -> SegmentationDataset:
    from twostage.data.folder import FolderDataset

    if not place:
        raise DatasetError('"folder:" needs a path, as in "folder:/data/mine" or "folder:/data/mine@val".')
    path, at, split = place.rpartition("@")
    whole = Path(place) if base is None else base / place
    if not at or whole.is_dir():
        return FolderDataset(whole)
    return FolderDataset(Path(path) if base is None else base / path, split)
