"""`twostage segment` at work: photos or the frames of a video through one system into one folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from twostage.data.image_io import read_label_png
from twostage.data.photo_list import Shot, write_list
from twostage.data.video import Video
from twostage.runs.finished import Finished
from twostage.runs.photo_stream import Facts, Outcome, Stream
from twostage.types import VOID, Segmentation
from twostage.visualize import write_segmentation
from twostage.visualize.film import film_picture
from twostage.visualize.overlay import Picture
from twostage.vocabulary import Vocabulary

FAILED = "failed.txt"
"""In the output folder: the photos of the last run that failed and why; `--list` reads it."""


class Labels(Protocol):
    """A system that labels photos, such as twostage.predict.System."""

    def segment(self, photo: Tensor, classes: Vocabulary, image_id: str = "") -> Segmentation:
        """RGB uint8 (3, H, W) -> a label map of its size; image_id: the name of masks that were stored."""
        ...


@dataclass(frozen=True)
class Job:
    """Writes into `out` what `system` makes of photos; finished: knows what is there."""

    out: Path
    system: Labels
    vocabulary: Vocabulary
    finished: Finished

    def run(
        self,
        shots: Iterable[Shot],
        read: Callable[[Shot], Tensor],
        seen: Callable[[Shot, str], None],
        threads: int = 2,
    ) -> Outcome:
        """Labels these photos, see Stream, and notes those that failed in FAILED; shots: without those that
        are finished; read: gives RGB uint8 (3, H, W).
        """

        def read_both(shot: Shot) -> tuple[Facts, Tensor]:
            try:
                facts = self.finished.facts(shot)
            except OSError:  # reading it says better what is wrong
                facts = {}
            return facts, read(shot)

        def write(shot: Shot, facts: Facts, image: Tensor, made: Segmentation) -> str:
            files = write_segmentation(self.out, shot.name, image, made, self.vocabulary, facts)
            return str(files.overlay)

        def label(shot: Shot, image: Tensor) -> Segmentation:
            name = shot.path.stem if shot.frame is None else shot.name
            return self.system.segment(image, self.vocabulary, name)

        outcome = Outcome()
        try:
            Stream(read_both, label, write, threads=threads, seen=seen).run(shots, outcome)
        finally:
            self._note(outcome)
        return outcome

    def frames(self, video: Video, shots: Iterable[Shot]) -> Iterator[Picture]:
        """The labelled ones among these frames as pictures for `write_film`, read from their label maps."""
        position = np.full(1 << 16, VOID, np.int32)
        position[list(self.vocabulary.label_ids)] = np.arange(len(self.vocabulary))
        for shot in shots:
            if (path := self.out / f"{shot.name}_labels.png").is_file():
                yield film_picture(video.read(shot), position[read_label_png(path)], self.vocabulary)

    def _note(self, outcome: Outcome) -> None:
        path = self.out / FAILED
        if outcome.failed and not outcome.stopped:
            write_list(path, ((shot.path, f"{shot}: {reason}") for shot, reason in outcome.failed))
        elif not outcome.stopped:
            path.unlink(missing_ok=True)
