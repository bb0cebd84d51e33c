"""Figures that an evaluation should meet (TEST.EXPECTED_RESULTS), as papers print them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from twostage.config.option import ConfigError
from twostage.errors import TwostageError
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)

METRICS = ("seen", "unseen", "hIoU", "mIoU", "mIoU_skip", "pAcc", "mAcc", "fwIoU")
"""What can be expected: columns of the summary table."""
PAIR_METRICS = ("seen", "unseen", "hIoU", "FB-IoU")
"""The same of one-word segmentation."""
KEY = "TEST.EXPECTED_RESULTS"


class Numbers(Protocol):
    """The numbers of one system on one data set."""

    def as_dict(self) -> dict[str, Any]:
        """Among others what METRICS or PAIR_METRICS names."""
        ...


class UnexpectedResultError(TwostageError):
    """A measured figure is farther from the expected one than the tolerance allows."""


@dataclass(frozen=True)
class Expectation:
    """One figure in percent and how far from it a result may lie."""

    dataset: str
    system: str
    metric: str
    percent: float
    tolerance: float


@dataclass(frozen=True)
class Verdict:
    """An expectation beside what was measured (None: there is no such number)."""

    expected: Expectation
    measured: float | None

    @property
    def met(self) -> bool:
        """Whether the measured figure lies within the tolerance."""
        if self.measured is None:
            return False
        return abs(self.measured - self.expected.percent) <= self.expected.tolerance

    def as_dict(self) -> dict[str, Any]:
        """Plain data for results files."""
        return {**asdict(self.expected), "measured": self.measured, "met": self.met}


Names = Sequence[str] | None


def parse(
    rows: Sequence[Any], datasets: Names = None, systems: Names = None, metrics: Sequence[str] = METRICS
) -> list[Expectation]:
    """The rows of TEST.EXPECTED_RESULTS; None accepts any data set or system.

    Raises:
        ConfigError: a row of another form, or one that speaks of a data set, system or metric that is not
            evaluated.
    """
    allowed = (datasets, systems, metrics)
    return [_parse_row(f"{KEY}, row {place}", row, allowed) for place, row in enumerate(rows)]


def _parse_row(where: str, row: Any, known: tuple[Names, Names, Names]) -> Expectation:
    if not isinstance(row, list) or len(row) != 5:
        raise ConfigError(f"{where}: expected [data set, system, metric, percent, tolerance], got {row!r}.")
    names, numbers = row[:3], row[3:]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: data set, system and metric have to be words, got {names!r}.")
    for name, what, allowed in zip(names, ("data set", "system", "metric"), known, strict=True):
        if allowed is not None and name not in allowed:
            raise ConfigError(f"{where}: {what} {name!r} is not evaluated.{nearest(name, allowed)}")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ConfigError(f"{where}: percent and tolerance have to be numbers, got {numbers!r}.")
    if not 0 <= numbers[0] <= 100 or numbers[1] < 0:
        raise ConfigError(
            f"{where}: expected a percentage of 0 to 100 and a tolerance of 0 or more, got {numbers!r}."
        )
    dataset, system, metric = names
    return Expectation(dataset, system, metric, float(numbers[0]), float(numbers[1]))


def judge(
    expectations: Sequence[Expectation], measured: Mapping[str, Mapping[str, Numbers]]
) -> list[Verdict]:
    """measured: data set -> system -> numbers."""
    verdicts = []
    for expected in expectations:
        metrics = measured.get(expected.dataset, {}).get(expected.system)
        value = None if metrics is None else metrics.as_dict()[expected.metric]
        verdicts.append(Verdict(expected, None if value is None else float(value)))
    return verdicts


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """One line each: what, expected, measured, met or not."""
    lines = []
    for verdict in verdicts:
        expected = verdict.expected
        got = "no number" if verdict.measured is None else f"{verdict.measured:.1f}"
        lines.append(
            f"{expected.dataset}, {expected.system}, {expected.metric}: expected {expected.percent:.1f} "
            f"+- {expected.tolerance:g}, got {got}: {'met' if verdict.met else 'NOT MET'}"
        )
    return "\n".join(lines)


def require_met(verdicts: Sequence[Verdict]) -> None:
    """Raises UnexpectedResultError where a figure was not met; the results themselves are written already."""
    missed = [verdict for verdict in verdicts if not verdict.met]
    if missed:
        raise UnexpectedResultError(
            f"{len(missed)} of {len(verdicts)} expected figures were not met:\n{format_verdicts(missed)}\n"
            f"The results are written. Empty {KEY} if these weights are not meant to meet them."
        )
