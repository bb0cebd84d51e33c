"""Which pictures to label and what their files are called; nothing is opened before its turn."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twostage.data.atomic import replacing
from twostage.data.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Shot:
    """One picture to label. name: of its output files; path: of the photo or video; frame: its number in the
    video, from 0, or None.
    """

    name: str
    path: Path
    frame: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.frame is None else f"{self.path}, frame {self.frame}"


def shots_of(photos: Sequence[Path]) -> list[Shot]:
    """A shot a photo, under names that differ."""
    return [Shot(name, photo) for name, photo in output_names(photos)]


def find_photos(places: Sequence[str], out: Path) -> list[Path]:
    """Files as given, readable or not; folders searched for photos, except where the output goes.

    Raises:
        DataError: a folder without photos, or nothing but places that are not there.
    """
    found: list[Path] = []
    if not any(Path(place).exists() for place in places):
        shown = [*places[:5], "..."] if len(places) > 5 else places
        raise DataError(f"No such file or folder: {', '.join(shown)}.")
    own = out.resolve()
    for place in map(Path, places):
        if place.is_dir():
            photos = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            inside = sorted(p for p in photos if own == place.resolve() or own not in p.resolve().parents)
            if not inside:
                raise DataError(f"{place} holds no photos ({', '.join(SUFFIXES)}).")
            found += inside
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def read_list(path: str | Path) -> list[str]:
    """The lines of a text file of photos, or of the standard input for "-"; empty lines and those that begin
    with # are left out.

    Raises:
        DataError: unreadable, or it names nothing.
    """
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"--list {path}: cannot be read ({error.strerror}). Give a text file.") from error
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    named = [line for line in lines if line.strip() and not line.startswith("#")]
    if not named:
        raise DataError(f"--list {path}: names no photo. Give a text file with a path a line.")
    if wrong := next((line for line in named if "\0" in line), None):
        raise DataError(f"--list {path}: {wrong[:40]!r} is no path. Give a text file with a path a line.")
    return named


def write_list(path: str | Path, entries: Iterable[tuple[Path, str]]) -> None:
    """A file that `read_list` reads, with what is to say of each photo in a line above it; atomic."""
    lines = []
    for photo, note in entries:
        lines += [f"# {' '.join(note.split())}"]
        if "\n" not in str(photo):
            lines += [f"./{photo}" if str(photo).startswith("#") else str(photo)]
    with replacing(path) as stream:
        stream.write(os.fsencode("".join(f"{line}\n" for line in lines)))


def output_names(photos: Sequence[Path]) -> list[tuple[str, Path]]:
    """A name for the files of each photo: its stem, numbered where two photos share one."""
    stems = {photo.stem for photo in photos}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    named = []
    for photo in photos:
        name, count = photo.stem, counts.get(photo.stem, 1)
        while name in taken or (count > 1 and name in stems):
            count += 1
            name = f"{photo.stem}_{count}"
        counts[photo.stem] = count
        taken.add(name)
        named.append((name, photo))
    return named
