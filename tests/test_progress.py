"""A long loop says how far it is, not more often than asked."""

from __future__ import annotations

import logging

import pytest

from twostage import progress
from twostage.progress import Progress


def test_lines_come_after_the_silence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.INFO):
        told = Progress(logging.getLogger("test"), "Crops", 40)
        for done in range(1, 31):
            clock[0] += 1
            told.at(done)
    assert [record.getMessage() for record in caplog.records] == [
        "Crops: 11 of 40 photos, 1.0/s, 29 s left",
        "Crops: 22 of 40 photos, 1.0/s, 18 s left",
    ]
    assert told.elapsed == 30
