"""Makes the label maps of splits in several processes, goes on where an earlier run stopped, counts them."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from twostage.data.errors import DatasetError
from twostage.data.prepare import record
from twostage.data.prepare.found import some
from twostage.data.prepare.plan import Item, Split
from twostage.data.prepare.work import Outcome, Task, work

Progress = Callable[[str, int, int], None]
"""Called with the split's title, the finished items and all items, after each."""

_MOST_PROBLEMS = 20
"""Bad files after which a split is given up: with more of them it is the folder that is wrong."""
_CHUNK = 16
_STALE_SECONDS = 60.0
"""Age of an unfinished file that no running process can still be writing."""


@dataclass(frozen=True)
class Report:
    """A split that is whole: how many maps, how many of them this run wrote, and what to know of them."""

    split: Split
    tally: record.Tally

    def format(self) -> str:
        """A few lines to read."""
        tally, total = self.tally, int(self.tally.pixels.sum()) + self.tally.ignored
        absent = [name for name, count in zip(self.split.words, tally.images, strict=True) if not count]
        lines = [
            f"{self.split.title}: {len(tally.present):,} of {self.split.benchmark.photos:,} label maps in "
            f"{self.split.folder} "
            f"({tally.written:,} written now), {len(self.split.words) - len(absent)} of "
            f"{len(self.split.words)} classes, {tally.ignored / max(1, total):.1%} of the pixels ignored."
        ]
        if tally.without_class:
            lines.append(f"  {tally.without_class:,} maps have no class at all; they are kept.")
        if absent:
            lines.append(f"  Classes without a pixel: {some(absent, 10)}.")
        lines += [f"  {note}" for note in tally.notes[:5]]
        if len(tally.notes) > 5:
            lines.append(f"  ... and {len(tally.notes) - 5} more such photos.")
        return "\n".join(lines)


def prepare(
    splits: Sequence[Split],
    workers: int = 1,
    force: bool = False,
    check_only: bool = False,
    progress: Progress | None = None,
) -> list[Report]:
    """Make, or check, every label map of every split; each split gets its index once it is whole.

    A map that is there, readable and of its photo's size is not made again, unless forced. check_only writes
    nothing: maps, index and histogram are compared with what the annotations say now.

    Raises:
        DatasetError: files that cannot be used or are wrong; the first are named. What was made is whole and
            stays, the split's index is not written.
    """
    return [_prepare_split(split, workers, force, check_only, progress) for split in splits]


def _prepare_split(
    split: Split, workers: int, force: bool, check_only: bool, progress: Progress | None
) -> Report:
    if not check_only:
        _forget_index(split, force)
    tally = record.Tally(len(split.words))
    problems: list[str] = []
    task = Task.of(split, force, check_only)
    with contextlib.closing(_outcomes(split.items, task, workers)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            if outcome.problem:
                problems.append(outcome.problem)
            else:
                tally.add(outcome)
            if progress is not None:
                progress(split.title, done, len(split.items))
            if len(problems) >= _MOST_PROBLEMS:
                problems.append("Stopped here: so many point to a wrong folder or release.")
                break
    problems += _strays(split)
    if not problems and check_only:
        problems += record.differences(split, tally)
    if problems:
        listed = "\n  ".join(problems)
        raise DatasetError(
            f"{split.title}: not whole, {len(tally.present)} of {len(split.items)} maps are "
            f"right.\n  {listed}"
        )
    if not check_only:
        for folder in (split.folder, split.photos):
            _sweep(folder)
        # Last: an index older than its folder counts as out of date.
        record.write(split, tally)
    return Report(split, tally)


def _outcomes(items: Sequence[Item], task: Task, workers: int) -> Generator[Outcome, None, None]:
    """In the order of the items; closing the iterator ends the work."""
    job = functools.partial(work, task=task)
    if workers <= 1 or len(items) <= _CHUNK:
        yield from map(job, items)
        return
    # A fresh process each: forking one that already runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_serve_parent)
    try:
        yield from pool.map(job, items, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise DatasetError(
            f"{items[0].target.parent}: A process ended before its work was done; most often the memory is "
            "full. What is made stays: run again, with fewer --workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _serve_parent() -> None:
    """Leave keys to the program; end with it: workers of a killed one would wait for work for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _forget_index(split: Split, force: bool) -> None:
    """While maps are missing or made anew, no index claims that the split is whole."""
    if force or not all(item.target.is_file() for item in split.items):
        split.index.unlink(missing_ok=True)
        split.histogram.unlink(missing_ok=True)


def _strays(split: Split) -> list[str]:
    """Label maps that no photo of the split stands for, as an earlier list of names may have left them."""
    wanted = {item.target.name for item in split.items}
    strays = sorted(p.name for p in split.folder.glob("*.png") if p.name not in wanted and p.name[0] != ".")
    if not strays:
        return []
    return [
        f"{split.folder}: {len(strays)} label maps that are not of this split: {some(strays)}. Remove them."
    ]


def _sweep(folder: Path | None) -> None:
    """Remove what a killed run left unfinished."""
    for path in folder.glob(".*.part") if folder else ():
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue
