"""Files that are either whole or not there: written beside their place, then moved over it in one step."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_PART = re.compile(r"\..+\.(\d+)\.part")


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not.

    Folders on the way are made. Raises whatever the file system says (OSError).
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: str | Path, seconds: float = 60.0) -> int:
    """Removes what processes that were killed in the middle of `replacing` left in a folder: how many files.

    Those of a process that lives on this machine stay, and those younger than `seconds`, which another
    machine may be writing.
    """
    swept = 0
    for entry in os.scandir(folder) if Path(folder).is_dir() else ():
        found = _PART.fullmatch(entry.name)
        if found and not _lives(int(found[1])) and time.time() - entry.stat().st_mtime >= seconds:
            Path(entry.path).unlink(missing_ok=True)
            swept += 1
    return swept


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process
        return True
    return True
