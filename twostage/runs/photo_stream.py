"""Any number of photos in constant memory: decoded ahead, labelled one by one, written in the background.

A photo that cannot be read, labelled or written is noted, and the next ones go on.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from twostage.data.photo_list import Shot
from twostage.data.prefetch import read_ahead
from twostage.data.video import EndOfVideo
from twostage.engine.memory import of_one_photo, release_cached
from twostage.engine.signals import StopSignals
from twostage.ops.memory import out_of_memory
from twostage.types import Segmentation

Facts = dict[str, Any]
Read = Callable[[Shot], tuple[Facts, Tensor]]
"""What a photo is, and the photo, RGB uint8 (3, H, W)."""
Label = Callable[[Shot, Tensor], Segmentation]
Write = Callable[[Shot, Facts, Tensor, Segmentation], str]
"""Writes the files of a photo and says where they are."""

NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that the next photo would meet too."""
ADVICE = (
    "out of memory. Look at it at a smaller size (--set INPUT.MIN_SIZE_TEST=512), ask for fewer classes at "
    "once, or shrink the photo"
)


@dataclass
class Outcome:
    """written: photos; failed: with the reason; signal: the number of the one that stopped it, or 0; stopped:
    why nothing more could be written, or "".
    """

    written: int = 0
    failed: list[tuple[Shot, str]] = field(default_factory=list)
    signal: int = 0
    stopped: str = ""


@dataclass(frozen=True)
class Stream:
    """read, label, write: the three steps of a photo, the first in threads of their own and the last in one.

    ahead: decoded photos that wait to be labelled; behind: labelled ones that wait to be written; threads:
    that read, 1 where it has to be in order; seen: called after every photo with where its files are, or "".
    """

    read: Read
    label: Label
    write: Write
    ahead: int = 4
    behind: int = 2
    threads: int = 2
    seen: Callable[[Shot, str], None] = lambda shot, where: None

    def run(self, shots: Iterable[Shot], outcome: Outcome) -> None:
        """Label photos until there are no more or a signal asks to stop; `outcome` is kept up to date, also
        where an error ends it.
        """
        waiting: deque[tuple[Shot, Future[str]]] = deque()
        readings = read_ahead(self.read, shots, self.ahead, self.threads)
        with ThreadPoolExecutor(1, "write") as writer, StopSignals() as stop, closing(readings):
            try:
                for shot, reading in readings:
                    if stop.requested or outcome.stopped or _ended(reading):
                        break
                    made = self._labelled(shot, reading, outcome)
                    del reading  # the next wait must not hold this photo
                    if made is not None:
                        waiting.append((shot, writer.submit(self.write, shot, *made)))
                    del made
                    while len(waiting) > self.behind or (waiting and waiting[0][1].done()):
                        self._settle(*waiting.popleft(), outcome)
            finally:
                while waiting:
                    self._settle(*waiting.popleft(), outcome)
                outcome.signal = stop.requested

    def _labelled(
        self, shot: Shot, reading: Future[tuple[Facts, Tensor]], outcome: Outcome
    ) -> tuple[Facts, Tensor, Segmentation] | None:
        try:
            facts, image = reading.result()
            return facts, image, _on_cpu(self.label(shot, image))
        except Exception as error:
            self._failed(shot, _reason(error), outcome)
        release_cached()
        return None

    def _settle(self, shot: Shot, writing: Future[str], outcome: Outcome) -> None:
        try:
            where = writing.result()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_PLACE:
                outcome.stopped = f"nothing more can be written ({error.strerror})"
            self._failed(shot, _reason(error), outcome)
        else:
            outcome.written += 1
            self.seen(shot, where)

    def _failed(self, shot: Shot, reason: str, outcome: Outcome) -> None:
        outcome.failed.append((shot, reason))
        self.seen(shot, "")


def _reason(error: Exception) -> str:
    """Why a photo failed; an error that is no photo's own is raised."""
    if not of_one_photo(error):
        raise error
    return ADVICE if out_of_memory(error) else str(error)


def _ended(reading: Future[Any]) -> bool:
    return isinstance(reading.exception(), EndOfVideo)


def _on_cpu(made: Segmentation) -> Segmentation:
    """What is written of a segmentation: class maps, (K, H, W), would fill the memory while they wait."""
    sure = None if made.confidence is None else made.confidence.cpu()
    return Segmentation(made.labels.cpu(), confidence=sure, info=made.info)
