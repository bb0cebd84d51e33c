"""What an output folder holds already: which photos need no second look, and why others do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from twostage.data.photo_list import Shot


class Finished:
    """Finds photos whose three files are there and were made of the same photo by the same means.

    made_by: what labels depend on beside the photo, name -> digest ("classes", "system"); again: nothing
    counts as finished. `done` and `outdated` count what `pending` met.
    """

    def __init__(self, out: Path, made_by: Mapping[str, str], again: bool = False) -> None:
        self._out, self._made_by, self._again = out, dict(made_by), again
        self.done = 0
        self.outdated: dict[str, int] = {}
        """Photos whose files are of something else, by what differs."""

    def facts(self, shot: Shot) -> dict[str, Any]:
        """What the files of a photo are made of, for `write_segmentation`; to be asked before the photo is
        read. A photo counts as the same while path, size and time of change are.

        Raises:
            OSError: there is no such file.
        """
        found = os.stat(shot.path)
        path = str(shot.path.resolve()).encode("utf-8", "backslashreplace").decode()
        photo = {"path": path, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}
        return {**photo, **({} if shot.frame is None else {"frame": shot.frame}), **self._made_by}

    def pending(self, shots: Iterable[Shot]) -> Iterator[Shot]:
        """Those that are to be labelled, in order; what cannot be found is among them."""
        for shot in shots:
            differs = "" if self._again else self._difference(shot)
            if differs is None:
                self.done += 1
                continue
            if differs:
                self.outdated[differs] = self.outdated.get(differs, 0) + 1
            yield shot

    def _difference(self, shot: Shot) -> str | None:
        """None where the photo is finished, "" where nothing is there, or what the files are of."""
        try:
            summary = json.loads((self._out / f"{shot.name}.json").read_bytes())
            told, files = dict(summary["made_of"]), [summary["overlay_file"], summary["labels_file"]]
            wanted = self.facts(shot)
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if told != wanted:
            same = [name for name in self._made_by if told.get(name) == wanted[name]]
            other = [name for name in self._made_by if name not in same]
            return "other " + " and ".join(other) if other else "another photo"
        return None if all((self._out / str(name)).is_file() for name in files) else ""

    def told(self, total: int) -> list[str]:
        """Lines about `total` photos that were asked for."""
        lines = []
        if self.done:
            lines.append(f"{self.done} of {total} already done; --again to redo them")
        for differs, number in self.outdated.items():
            lines.append(f"{number} of {total} were made with {differs} and are made anew")
        return lines
