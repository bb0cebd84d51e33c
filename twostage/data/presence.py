"""Which classes occur in which label map: asked of a whole folder, answered from an index beside it.

Sampling crops of each class, or leaving out photos without a seen class, would otherwise read every label map
of the data set at each start.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from twostage.data.atomic import replacing
from twostage.data.image_io import read_label_png

logger = logging.getLogger(__name__)


def index_path(label_folder: Path) -> Path:
    """The index of a folder of label maps: FOLDER.json, beside it; preparation writes it too."""
    return label_folder.with_name(f"{label_folder.name}.json")


def write_index(label_folder: Path, present: Mapping[str, Sequence[int]]) -> Path:
    """Store {stem: values present, ascending, void left out} as the folder's index."""
    path = index_path(label_folder)
    with replacing(path) as stream:
        stream.write(json.dumps({stem: list(present[stem]) for stem in sorted(present)}).encode())
    return path


def classes_present(label_folder: Path, void: int) -> dict[str, tuple[int, ...]]:
    """{stem: values present, ascending} of every PNG in the folder, from the index where it is up to date.

    Otherwise all label maps are read once and the index is stored, if the folder allows.

    Raises:
        ImageReadError: a label map that cannot be read.
    """
    files = {path.stem: path for path in sorted(label_folder.glob("*.png")) if path.name[0] != "."}
    known = _stored(label_folder)
    if known is not None and known.keys() == files.keys():
        return known
    logger.info("Looking once for the classes in %d label maps of %s ...", len(files), label_folder)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda path: _values(path, void), files.values())
        present = dict(zip(files, found, strict=True))
    try:
        write_index(label_folder, present)
    except OSError as error:
        logger.warning("%s: the index cannot be kept (%s), so the next run looks again.", label_folder, error)
    return present


def _values(path: Path, void: int) -> tuple[int, ...]:
    counts = np.bincount(read_label_png(path).numpy().ravel())
    return tuple(value for value in np.flatnonzero(counts).tolist() if value != void)


def _stored(label_folder: Path) -> dict[str, tuple[int, ...]] | None:
    """The index as it was written; None where it is absent, damaged, or older than the folder."""
    path = index_path(label_folder)
    try:
        if path.stat().st_mtime < label_folder.stat().st_mtime:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(stem): tuple(int(value) for value in values) for stem, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
