"""What a finished split says of itself: which classes each map has, and how many pixels each class."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twostage.data import presence
from twostage.data.atomic import replacing
from twostage.data.prepare.plan import Split
from twostage.data.prepare.work import Outcome


@dataclass
class Tally:
    """Sums over the finished maps of a split with K classes. pixels, images: (K,) int64 each."""

    classes: int
    present: dict[str, list[int]] = field(default_factory=dict)
    ignored: int = 0
    written: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(self.classes, dtype=np.int64)
        self.images = np.zeros(self.classes, dtype=np.int64)

    def add(self, outcome: Outcome) -> None:
        """Count one map in."""
        self.present[outcome.stem] = sorted(outcome.pixels)
        self.ignored += outcome.ignored
        self.written += outcome.written
        for place, count in outcome.pixels.items():
            self.pixels[place] += count
            self.images[place] += 1
        if outcome.note:
            self.notes.append(outcome.note)

    @property
    def without_class(self) -> int:
        """Maps that are ignored altogether."""
        return sum(not ids for ids in self.present.values())


def write(split: Split, tally: Tally) -> None:
    """Write the index of classes and the histogram of a split whose maps are all there."""
    with replacing(split.histogram) as stream:
        stream.write((json.dumps(histogram(split, tally), indent=1) + "\n").encode("utf-8"))
    presence.write_index(split.folder, tally.present)


def histogram(split: Split, tally: Tally) -> dict[str, Any]:
    """The content of the second file: totals, and for each class its pixels and the images it is in."""
    return {
        "maps": len(tally.present),
        "maps_without_class": tally.without_class,
        "ignored_pixels": tally.ignored,
        "classes": [
            {
                "id": place,
                "name": name,
                "pixels": int(tally.pixels[place]),
                "images": int(tally.images[place]),
            }
            for place, name in enumerate(split.words)
        ],
    }


def differences(split: Split, tally: Tally) -> list[str]:
    """What the written files say otherwise than the maps do."""
    now = {split.index: tally.present, split.histogram: histogram(split, tally)}
    return [
        f"{path}: does not say what the label maps hold. Run again without --check-only."
        for path, content in now.items()
        if _stored(path) != content
    ]


def _stored(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
