"""What lies in the folders, and whether it is all there: asked before any work is done."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from twostage.data.errors import DatasetError
from twostage.data.prepare.plan import Request

_log = logging.getLogger(__name__)
_HELP = "datasets/README.md says where to get it and how the folders look."


def object_to(message: str, request: Request) -> None:
    """An error, or a warning where a part is enough.

    Raises:
        DatasetError: with the message, unless `request.allow_partial`.
    """
    if not request.allow_partial:
        raise DatasetError(f"{message} Or go on with what there is: --allow-partial.")
    _log.warning("%s", message)


def files(folder: Path, ending: str, archive: str, recursive: bool = False) -> dict[str, Path]:
    """Name without `ending` -> file, sorted by name; hidden files (such as a Mac's "._1.jpg") do not count.

    recursive: look through sub-folders too. archive: where the folder comes from, for the message.

    Raises:
        DatasetError: the folder is missing, has no such file, or has a name twice.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: there is no such folder. It comes with {archive}; {_HELP}")
    pattern = f"*{ending}"
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(pattern) if recursive else folder.glob(pattern), key=lambda p: p.name):
        if path.name.startswith("."):
            continue
        stem = path.name.removesuffix(ending)
        if stem in found:
            raise DatasetError(f"{found[stem]} and {path} have the same name. Remove one.")
        found[stem] = path
    if not found:
        raise DatasetError(f"{folder}: expected *{ending} of {archive}, found none. {_HELP}")
    return found


def require_count(found: int, expected: int, where: Path, archive: str, request: Request) -> None:
    """Complain where a count is not the published one.

    Raises:
        DatasetError: it is another, and a part is not enough.
    """
    if found != expected:
        cause = "has more than the data set" if found > expected else "is there in part"
        object_to(f"{where}: expected {expected:,}, found {found:,}: {archive} {cause}. {_HELP}", request)


def require_pairs(
    stems: Iterable[str], images: Mapping[str, Path], masks: Mapping[str, Path], where: Path, request: Request
) -> list[str]:
    """The wanted stems that have both a photo and an annotation, in order.

    Raises:
        DatasetError: some lack one, and a part is not enough; or none has both.
    """
    wanted = list(stems)
    whole = [stem for stem in wanted if stem in images and stem in masks]
    for kind, there in (("photo", images), ("annotation", masks)):
        lacking = [stem for stem in wanted if stem not in there]
        if lacking:
            object_to(f"{where}: {len(lacking)} of {len(wanted)} have no {kind}: {some(lacking)}.", request)
    if not whole:
        raise DatasetError(
            f"{where}: no photo has an annotation of its name (photos: {some(images)}; annotations: "
            f"{some(masks)}). {_HELP}"
        )
    return whole


def names_in(path: Path) -> list[str]:
    """The stems of a list file: one name a line, or the path of a photo (and of its mask behind it).

    Raises:
        DatasetError: missing, not text, or a name that is listed twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: the list of names cannot be read ({error}). {_HELP}") from error
    names = [Path(line.split()[0]).stem for line in lines if line.strip()]
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise DatasetError(f"{path}: {len(twice)} names are listed twice: {some(twice)}.")
    return names


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names, for a message."""
    listed = list(names)
    return (", ".join(listed[:most]) + (", ..." if len(listed) > most else "")) or "none"
