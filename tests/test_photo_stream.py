"""The stream of photos through a system of costless parts: what waits, what fails, what stops it."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from twostage.data.errors import ImageReadError
from twostage.data.photo_list import Shot
from twostage.data.video import EndOfVideo
from twostage.ops.memory import out_of_memory
from twostage.runs.photo_stream import ADVICE, Outcome, Stream
from twostage.types import Segmentation


def shots(count: int) -> list[Shot]:
    return [Shot(f"{number:03d}", Path(f"{number}.jpg")) for number in range(count)]


def photo(shot: Shot) -> tuple[dict[str, Any], Tensor]:
    return {"name": shot.name}, torch.full((3, 2, 2), int(shot.name) % 256, dtype=torch.uint8)


def label(shot: Shot, image: Tensor) -> Segmentation:
    return Segmentation(image[0].int(), scores=torch.zeros(9, 2, 2))


def nowhere(shot: Shot, facts: Any, image: Tensor, made: Segmentation) -> str:
    return f"{shot.name}.png"


def failing(at: int, error: Exception) -> Callable[..., Any]:
    """A step that fails at one photo, known by its grey."""

    def step(shot: Shot, image: Tensor) -> Segmentation:
        if int(image[0, 0, 0]) == at:
            raise error
        return label(shot, image)

    return step


@pytest.mark.parametrize("slow", ["read", "label", "write"])
def test_few_photos_are_alive_at_any_time(slow: str) -> None:
    """Whatever is the slowest, the others wait for it instead of piling up photos."""
    alive: set[str] = set()
    most, lock = 0, threading.Lock()

    def pause(step: str) -> None:
        if step == slow:
            time.sleep(0.002)

    def read(shot: Shot) -> tuple[dict[str, Any], Tensor]:
        nonlocal most
        pause("read")
        facts, image = photo(shot)
        weakref.finalize(image, alive.discard, shot.name)
        with lock:
            alive.add(shot.name)
            most = max(most, len(alive))
        return facts, image

    def labelled(shot: Shot, image: Tensor) -> Segmentation:
        pause("label")
        return label(shot, image)

    written: list[str] = []

    def write(shot: Shot, facts: Any, image: Tensor, made: Segmentation) -> str:
        pause("write")
        assert made.scores is None, "class maps do not wait"
        assert int(made.labels[0, 0]) == int(shot.name) % 256
        written.append(shot.name)
        return ""

    outcome = Outcome()
    Stream(read, labelled, write, ahead=3, behind=2).run(shots(300), outcome)
    assert written == [shot.name for shot in shots(300)]
    assert (outcome.written, outcome.failed) == (300, [])
    assert 2 <= most <= 3 + 2 + 3


def test_failures_of_every_kind_leave_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    def read(shot: Shot) -> tuple[dict[str, Any], Tensor]:
        if shot.name == "002":
            raise ImageReadError("2.jpg: broken")
        if shot.name == "003":
            raise MemoryError
        return photo(shot)

    def labelled(shot: Shot, image: Tensor) -> Segmentation:
        if int(image[0, 0, 0]) == 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        if int(image[0, 0, 0]) == 5:
            torch.empty(1 << 55)
        return label(shot, image)

    def write(shot: Shot, facts: Any, image: Tensor, made: Segmentation) -> str:
        if shot.name == "006":
            raise OSError(errno.ENAMETOOLONG, "File name too long")
        return nowhere(shot, facts, image, made)

    seen: list[tuple[str, str]] = []
    outcome = Outcome()
    Stream(read, labelled, write, seen=lambda shot, where: seen.append((shot.name, where))).run(
        shots(9), outcome
    )
    assert outcome.written == 4
    reasons = {shot.name: reason for shot, reason in outcome.failed}
    assert sorted(reasons) == ["002", "003", "004", "005", "006"]
    assert reasons["002"] == "2.jpg: broken"
    assert reasons["003"] == reasons["004"] == reasons["005"] == ADVICE
    assert "File name too long" in reasons["006"]
    assert sorted(seen) == [(s.name, "" if s.name in reasons else f"{s.name}.png") for s in shots(9)]
    assert outcome.stopped == ""


def test_an_error_that_is_no_photo_s_own_is_raised_once_the_others_are_written() -> None:
    outcome = Outcome()
    written: list[str] = []

    def write(shot: Shot, facts: Any, image: Tensor, made: Segmentation) -> str:
        time.sleep(0.01)
        written.append(shot.name)
        return ""

    with pytest.raises(ZeroDivisionError):
        Stream(photo, failing(3, ZeroDivisionError()), write).run(shots(9), outcome)
    assert written == ["000", "001", "002"]
    assert outcome.written == 3
    with pytest.raises(RuntimeError, match="a bug"):
        Stream(photo, failing(1, RuntimeError("a bug")), nowhere).run(shots(3), Outcome())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("read", "write"))]


def test_a_full_disk_stops_the_run() -> None:
    def write(shot: Shot, facts: Any, image: Tensor, made: Segmentation) -> str:
        if int(shot.name) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return ""

    outcome = Outcome()
    Stream(photo, label, write, behind=1).run(shots(300), outcome)
    assert outcome.written == 2
    assert "No space left" in outcome.stopped
    assert 1 <= len(outcome.failed) < 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_present_photo(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def labelled(shot: Shot, image: Tensor) -> Segmentation:
        if int(image[0, 0, 0]) == 2:
            os.kill(os.getpid(), number)
        return label(shot, image)

    written: list[str] = []
    outcome = Outcome()
    stream = Stream(photo, labelled, lambda shot, *rest: written.append(shot.name) or "")
    stream.run(shots(300), outcome)
    assert written == ["000", "001", "002"]
    assert (outcome.written, outcome.signal) == (3, number)
    assert signal.getsignal(number) is before


def test_the_end_of_a_video_is_no_failure() -> None:
    def read(shot: Shot) -> tuple[dict[str, Any], Tensor]:
        if int(shot.name) >= 4:
            raise EndOfVideo("4 frames")
        return photo(shot)

    outcome = Outcome()
    Stream(read, label, nowhere, threads=1).run(iter(shots(300)), outcome)
    assert (outcome.written, outcome.failed) == (4, [])


@pytest.mark.parametrize(
    ("error", "so"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_mean_too_little_memory(error: Exception, so: bool) -> None:
    assert out_of_memory(error) is so
