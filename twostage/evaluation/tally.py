"""What an evaluation has counted so far, and the file that keeps it while the evaluation is not finished."""

from __future__ import annotations

import io
import json
import logging
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twostage.data.atomic import replacing
from twostage.data.errors import LabelError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.recall import ProposalRecall

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """Counts of one process. confusions: by system; done: photos of its share that it is through with, in
    order; failed: those among them that were left out, with the reason; seconds: of earlier sessions.
    """

    confusions: dict[str, ConfusionMatrix]
    recall: ProposalRecall
    done: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, systems: Iterable[str], classes: int) -> Tally:
        """Nothing counted yet."""
        return cls({name: ConfusionMatrix(classes) for name in systems}, ProposalRecall(classes))

    def empty(self) -> Tally:
        """Nothing counted yet of the same systems and classes."""
        return Tally.of(self.confusions, self.recall.num_classes)

    def leave_out(self, reason: str) -> None:
        """One photo more is through, uncounted."""
        self.done += 1
        self.failed.append(reason)

    def merge(self, other: Tally) -> None:
        """Add what another process, or one photo, has counted."""
        for name, matrix in other.confusions.items():
            self.confusions[name].merge(matrix)
        self.recall.merge(other.recall)
        self.done += other.done
        self.failed += other.failed
        self.seconds = max(self.seconds, other.seconds)


class Unfinished:
    """The file of one process that keeps its tally; written whole every so many seconds.

    facts: all that the counts depend on, plain data; a file of other facts is not taken up. seconds: between
    two savings.
    """

    def __init__(self, path: str | Path, facts: Mapping[str, Any], seconds: float = 60.0) -> None:
        self.path, self._seconds, self._saved = Path(path), seconds, time.monotonic()
        self._facts = json.dumps(dict(facts), sort_keys=True)
        self.before = 0
        """Photos that were counted in earlier sessions, once they are taken up."""

    def taken_up(self, fresh: Tally) -> Tally:
        """The stored tally where it is of the same facts, systems and classes; otherwise `fresh`."""
        if not self.path.is_file():
            return fresh
        try:
            with self.path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                content = dict(stored)
            if str(content["facts"]) != self._facts:
                logger.warning(
                    "%s is of an evaluation with %s; this one begins anew.",
                    self.path,
                    _difference(str(content["facts"]), self._facts),
                )
                return fresh
            found = fresh.empty()
            for place, name in enumerate(found.confusions):
                matrix = ConfusionMatrix.from_numpy(content[f"confusion_{place}"])
                found.confusions[name].merge(matrix)
            if content["recall"].shape != found.recall.sums.shape:
                raise ValueError("recall of other classes")
            found.recall.sums += content["recall"]
            told = json.loads(str(content["told"]))
            found.done, found.failed = int(told["done"]), [str(reason) for reason in told["failed"]]
            found.seconds = float(told["seconds"])
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, LabelError) as error:
            logger.warning("%s is damaged (%s); the evaluation begins anew.", self.path, error)
            return fresh
        self.before = found.done
        logger.info("%s: %d photos are counted already", self.path, found.done)
        return found

    def keep(self, tally: Tally, seconds: float, now: bool = False) -> None:
        """Store the tally where the last time is long ago, or `now`; seconds: of this session."""
        if not now and time.monotonic() - self._saved < self._seconds:
            return
        content: dict[str, Any] = {
            f"confusion_{place}": one.counts for place, one in enumerate(tally.confusions.values())
        }
        told = {"done": tally.done, "failed": tally.failed, "seconds": tally.seconds + seconds}
        buffer = io.BytesIO()
        np.savez(
            buffer,
            facts=np.asarray(self._facts),
            told=np.asarray(json.dumps(told)),
            recall=tally.recall.sums,
            **content,
        )
        with replacing(self.path) as stream:
            stream.write(buffer.getvalue())
        self._saved = time.monotonic()


def _difference(stored: str, wanted: str) -> str:
    """Names of the facts that differ."""
    before, after = json.loads(stored), json.loads(wanted)
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return "other " + ", ".join(names)
