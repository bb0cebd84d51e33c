"""How far a long loop has come, said now and then."""

from __future__ import annotations

import logging
import time


class Progress:
    """Logs how many of a loop's rounds are done, how many a second, and the time that is left.

    logger: of the module whose loop it is; what: what is being done; total: rounds in all; unit: what a round
    handles; seconds: silence between two lines.
    """

    def __init__(
        self, logger: logging.Logger, what: str, total: int, unit: str = "photos", seconds: float = 10.0
    ) -> None:
        self._logger, self._what, self._total, self._unit = logger, what, total, unit
        self._seconds = seconds
        self._started = self._spoken = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the loop began."""
        return time.monotonic() - self._started

    def at(self, done: int) -> None:
        """To be called after every round; done: how many there were, from one."""
        now = time.monotonic()
        if now - self._spoken <= self._seconds:
            return
        self._spoken = now
        rate = done / max(now - self._started, 1e-9)
        left = (self._total - done) / rate
        self._logger.info(
            "%s: %d of %d %s, %.1f/s, %.0f s left", self._what, done, self._total, self._unit, rate, left
        )
