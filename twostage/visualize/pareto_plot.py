"""Accuracy against time as a picture: points with their names, the frontier, time on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from twostage.visualize.legend import INK, PAPER, join
from twostage.visualize.lettering import shorten, text_width, write

_SCALE = 2  # drawn larger and shrunk, which smooths the lines
_SIZE_WH = (760, 560)
_MARGIN = (70, 54, 30, 60)  # left, top, right, bottom
_LETTERS = 15
_GRID, _LINE = (225, 225, 225), (200, 60, 40)
_ON, _OFF = (200, 60, 40), (70, 110, 160)
_AROUND: list[tuple[float, float]] = [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)]
_AROUND += [(0.5, -1), (-0.5, -1), (0.5, 1), (-0.5, 1), (1, -0.5), (-1, -0.5), (1, 0.5), (-1, 0.5)]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """name; seconds: above 0; accuracy: percent."""

    name: str
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Panel:
    """One plot: title, words at the axes, points."""

    title: str
    across: str
    up: str
    points: Sequence[Point]


def frontier(found: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the (seconds, accuracy) that no other beats: none is as fast and better, or as good and
    faster. The fastest first; of equal ones the first.
    """
    order = sorted(range(len(found)), key=lambda n: (found[n][0], -found[n][1], n))
    kept: list[int] = []
    for n in order:
        if not kept or found[n][1] > found[kept[-1]][1]:
            kept.append(n)
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in [low, high]: 1 to 9 times powers of ten over a short span, then 1, 2 and 5 times, then
    the powers alone, so that there are nine at most.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for digits in (range(1, 10), (1, 2, 5), (1,)):
        every = (float(f"{digit}e{power}") for power in powers for digit in digits)
        inside = [tick for tick in every if low <= tick <= high]
        if len(inside) <= 9:
            break
    return inside


def plot(panels: Sequence[Panel]) -> NDArray[np.uint8]:
    """The panels side by side, (H, W, 3) uint8 RGB."""
    return join([_Drawing(panel).done() for panel in panels], across=True, gap=10)


@dataclass
class _Drawing:
    """One panel at twice its size. taken: boxes x0, y0, x1, y1 in its pixels that no name may cover."""

    panel: Panel
    taken: list[Box] = field(default_factory=list)

    def done(self) -> NDArray[np.uint8]:
        width, height = (_SCALE * side for side in _SIZE_WH)
        self.paper = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.paper)
        self.inside = (
            _SCALE * _MARGIN[0],
            _SCALE * _MARGIN[1],
            width - _SCALE * _MARGIN[2],
            height - _SCALE * _MARGIN[3],
        )
        self._span()
        self._axes()
        self._points()
        small = self.paper.resize(_SIZE_WH, Image.Resampling.LANCZOS)
        return np.asarray(small)

    def _span(self) -> None:
        """What the axes reach from and to: a little more than the points."""
        seconds = [max(point.seconds, 1e-6) for point in self.panel.points]
        values = [point.accuracy for point in self.panel.points]
        self.low, self.high = min(seconds) / 1.5, max(seconds) * 1.5
        room = max(0.12 * (max(values) - min(values)), 0.5)
        self.bottom, self.top = min(values) - room, max(values) + room

    def _at(self, seconds: float, value: float) -> tuple[float, float]:
        left, top, right, bottom = self.inside
        share = math.log(max(seconds, 1e-6) / self.low) / math.log(self.high / self.low)
        rise = (value - self.bottom) / (self.top - self.bottom)
        return left + share * (right - left), bottom - rise * (bottom - top)

    def _axes(self) -> None:
        left, top, right, bottom = self.inside
        size = _SCALE * _LETTERS
        for tick in ticks(self.low, self.high):
            x, _ = self._at(tick, self.bottom)
            self.draw.line((x, top, x, bottom), fill=_GRID, width=_SCALE)
            self._centred(f"{tick:g}", x, bottom + size, size)
        step = _step(self.top - self.bottom)
        value = math.ceil(self.bottom / step) * step
        while value <= self.top:
            _, y = self._at(self.high, value)
            self.draw.line((left, y, right, y), fill=_GRID, width=_SCALE)
            text = f"{value:g}"
            write(self.paper, (round(left - text_width(text, size) - size / 2), round(y)), text, size, INK)
            value = round(value + step, 6)
        self.draw.rectangle(self.inside, outline=INK, width=_SCALE)
        title = shorten(self.panel.title, right, size)
        write(self.paper, (size, round(0.9 * size)), title, size, INK)
        write(self.paper, (size, round(2.5 * size)), self.panel.up, size, INK)
        self._centred(self.panel.across, (left + right) / 2, bottom + 2.6 * size, size)

    def _centred(self, text: str, x: float, y: float, size: int) -> None:
        write(self.paper, (round(x - text_width(text, size) / 2), round(y)), text, size, INK)

    def _points(self) -> None:
        points = self.panel.points
        places = [self._at(point.seconds, point.accuracy) for point in points]
        best = frontier([(point.seconds, point.accuracy) for point in points])
        self._steps([places[n] for n in best])
        radius = 5 * _SCALE
        dots = [(x - radius, y - radius, x + radius, y + radius) for x, y in places]
        self.taken += dots
        for n, point in enumerate(points):
            self._name(point.name, places[n], _ON if n in best else INK)
        for n, dot in enumerate(dots):  # over the lines that lead to names
            self.draw.ellipse(dot, fill=_ON if n in best else _OFF, outline=PAPER, width=_SCALE)

    def _steps(self, places: Sequence[tuple[float, float]]) -> None:
        """The frontier: what is reached in the time that is given."""
        for (x0, y0), (x1, y1) in zip(places, [*places[1:], (self.inside[2], places[-1][1])], strict=True):
            self.draw.line((x0, y0, x1, y0, x1, y1), fill=_LINE, width=_SCALE)
            self.taken += [(x0, y0 - _SCALE, x1, y0 + _SCALE), (x1 - _SCALE, y1, x1 + _SCALE, y0)]

    def _name(self, text: str, place: tuple[float, float], colour: tuple[int, int, int]) -> None:
        """Beside its point where nothing is covered, farther off with a line to it where it is crowded."""
        size = round(0.85 * _SCALE * _LETTERS)
        text = shorten(text, 270 * _SCALE, size)
        width, height = text_width(text, size), 1.1 * size
        spots = [
            self._spot(place, reach * _SCALE, way, width, height)
            for reach in (9, 20, 32, 46, 62, 80, 100, 125, 150, 180)
            for way in _AROUND
        ]
        inside = [spot for spot in spots if self._is_inside(spot)] or spots
        free = min(inside, key=self._covers)  # the nearest that covers nothing, if any
        self.taken.append(free)
        middle = ((free[0] + free[2]) / 2, (free[1] + free[3]) / 2)
        if free not in spots[: len(_AROUND)]:
            end = (min(max(place[0], free[0]), free[2]), min(max(place[1], free[1]), free[3]))
            self.draw.line((*place, *end), fill=(150, 150, 150), width=_SCALE)
        write(self.paper, (round(free[0]), round(middle[1])), text, size, colour)

    @staticmethod
    def _spot(
        place: tuple[float, float], reach: float, way: tuple[float, float], width: float, height: float
    ) -> Box:
        """The box of a text that lies on this side of a point."""
        x = place[0] + way[0] * (reach + width / 2)
        y = place[1] + way[1] * (reach + height / 2)
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2

    def _is_inside(self, spot: Box) -> bool:
        left, top, right, bottom = self.inside
        return left < spot[0] and top < spot[1] and spot[2] < right and spot[3] < bottom

    def _covers(self, spot: Box) -> int:
        """How much of what is there already a name would cover."""
        return sum(
            spot[2] > other[0] and spot[0] < other[2] and spot[3] > other[1] and spot[1] < other[3]
            for other in self.taken
        )


def _step(span: float) -> float:
    """A round distance between lines of which four to ten fit into a span."""
    power: float = 10.0 ** math.floor(math.log10(span / 4))
    return next(digit * power for digit in (5, 2, 1) if digit * power <= span / 4)
