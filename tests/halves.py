"""A costless system at work on a folder of photos, to be run in a process of its own and killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from twostage.data.image_io import read_image
from twostage.data.photo_list import find_photos, shots_of
from twostage.runs.finished import Finished
from twostage.runs.segmenting import Job
from twostage.types import Segmentation
from twostage.vocabulary import Vocabulary


class Halves:
    """A system without networks: dark and bright pixels; slow, so that it can be killed."""

    def segment(self, photo: Any, classes: Any, image_id: str = "") -> Segmentation:
        time.sleep(0.02)
        return Segmentation((photo[0] // 128).int())


def label_halves(folder: Path) -> tuple[int, int]:
    """Labels the photos of a folder; how many were done already and how many were written."""
    finished = Finished(folder / "out", {"classes": "halves"})
    todo = list(finished.pending(shots_of(find_photos([str(folder / "photos")], folder / "out"))))
    job = Job(folder / "out", Halves(), Vocabulary((("dark",), ("bright",))), finished)
    outcome = job.run(todo, lambda shot: read_image(shot.path), lambda shot, where: None)
    return finished.done, outcome.written


if __name__ == "__main__":
    label_halves(Path(sys.argv[1]))
