"""The fourteen things, each upright on a square canvas; rotation, size and place are the scene's business."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from twostage.data.shapes.classes import COLOURS, COMPOSITIONS

Rng = np.random.Generator
CANVAS = 96
"""Side of the canvas in pixels; a thing fills most of it."""


@dataclass
class Drawing:
    """picture: (CANVAS, CANVAS, 3) uint8 RGB; alpha: (CANVAS, CANVAS) uint8, 255 inside; colour: its main
    colour's name; turn: the largest rotation in degrees that leaves it itself.
    """

    picture: np.ndarray
    alpha: np.ndarray
    colour: str
    turn: float = 20.0

    def fill(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        """A filled polygon; points are (x, y) in 0..1 of the canvas."""
        corners = (np.array(points) * CANVAS * 8).round().astype(np.int32)
        cv2.fillPoly(self.picture, [corners], colour, cv2.LINE_AA, shift=3)
        cv2.fillPoly(self.alpha, [corners], 255, cv2.LINE_8, shift=3)

    def oval(
        self, x: float, y: float, rx: float, ry: float, colour: tuple[int, int, int], angle: float = 0
    ) -> None:
        """A filled ellipse; all lengths in 0..1 of the canvas."""
        centre = (round(x * CANVAS), round(y * CANVAS))
        axes = (max(1, round(rx * CANVAS)), max(1, round(ry * CANVAS)))
        cv2.ellipse(self.picture, centre, axes, angle, 0, 360, colour, -1, cv2.LINE_AA)
        cv2.ellipse(self.alpha, centre, axes, angle, 0, 360, 255, -1)

    def line(self, points: list[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        """An open line of the given width in canvas pixels."""
        corners = (np.array(points) * CANVAS).round().astype(np.int32)
        cv2.polylines(self.picture, [corners], False, colour, width, cv2.LINE_AA)
        cv2.polylines(self.alpha, [corners], False, 255, width)


def pick_colour(rng: Rng, avoid: str = "") -> tuple[str, tuple[int, int, int]]:
    """A nuisance colour with a little variation."""
    name = str(rng.choice([name for name in COLOURS if name != avoid]))
    return name, shade(COLOURS[name], rng.normal(0, 10))


def shade(colour: tuple[int, int, int], amount: float) -> tuple[int, int, int]:
    """The colour made lighter (positive) or darker."""
    red, green, blue = (int(np.clip(value + amount, 0, 255)) for value in colour)
    return red, green, blue


def _blank(colour: str, background: tuple[int, int, int], turn: float = 20.0) -> Drawing:
    picture = np.empty((CANVAS, CANVAS, 3), np.uint8)
    picture[:] = background
    return Drawing(picture, np.zeros((CANVAS, CANVAS), np.uint8), colour, turn)


def _pattern(kind: str, rng: Rng) -> np.ndarray:
    """(CANVAS, CANVAS) bool: where the second colour goes."""
    angle, cells = rng.uniform(0, np.pi), rng.uniform(4.2, 6.0)
    y, x = (np.mgrid[0:CANVAS, 0:CANVAS] - CANVAS / 2) * (cells / CANVAS)
    second: np.ndarray
    u = np.cos(angle) * x + np.sin(angle) * y + rng.random()
    v = -np.sin(angle) * x + np.cos(angle) * y + rng.random()
    if kind == "striped":
        second = (u % 1.0) < 0.5
    elif kind == "checkered":
        second = ((np.floor(u) + np.floor(v)) % 2) < 1
    else:
        second = (u % 1.0 - 0.5) ** 2 + (v % 1.0 - 0.5) ** 2 < 0.34**2
    return second


def _star(outer: float, inner: float) -> list[tuple[float, float]]:
    steps = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, outer, inner)
    return [(0.5 + r * np.cos(t), 0.5 + r * np.sin(t)) for r, t in zip(radius, steps, strict=True)]


def composition(kind: str, rng: Rng) -> Drawing:
    """A patterned ball or star: "striped ball", ..., in two contrasting colours."""
    pattern, shape = kind.split()
    name, first = pick_colour(rng)
    second = first
    while abs(np.dot(np.subtract(first, second), (0.3, 0.59, 0.11))) < 60:
        second = pick_colour(rng, avoid=name)[1]
    drawing = _blank(name, first, turn=180.0)
    drawing.picture[_pattern(pattern, rng)] = second
    if shape == "ball":
        cv2.circle(drawing.alpha, (CANVAS // 2, CANVAS // 2), round(CANVAS * 0.47), 255, -1)
        return drawing
    corners = (np.array(_star(0.52, rng.uniform(0.25, 0.29))) * CANVAS * 8).round().astype(np.int32)
    cv2.fillPoly(drawing.alpha, [corners], 255, cv2.LINE_8, shift=3)
    return drawing


def house(rng: Rng) -> Drawing:
    """Walls, a gable roof, a door and a window."""
    name, wall = pick_colour(rng)
    drawing = _blank(name, wall)
    roof = shade(pick_colour(rng, avoid=name)[1], -20)
    drawing.fill([(0.15, 0.45), (0.85, 0.45), (0.85, 0.95), (0.15, 0.95)], wall)
    drawing.fill([(0.04, 0.47), (0.5, rng.uniform(0.04, 0.14)), (0.96, 0.47)], roof)
    side = 0.24 if rng.random() < 0.5 else 0.56
    drawing.fill([(side, 0.6), (side + 0.18, 0.6), (side + 0.18, 0.95), (side, 0.95)], shade(wall, -75))
    other = 0.8 - side
    drawing.fill([(other, 0.58), (other + 0.18, 0.58), (other + 0.18, 0.76), (other, 0.76)], (185, 215, 235))
    return drawing


def tree(rng: Rng) -> Drawing:
    """A brown trunk under a round or pointed green crown."""
    green = shade((48, 118, 52), rng.normal(0, 14))
    drawing = _blank("green", green, turn=15.0)
    drawing.fill(
        [(0.43, 0.5), (0.57, 0.5), (0.6, 0.98), (0.4, 0.98)], shade((105, 70, 40), rng.normal(0, 10))
    )
    if rng.random() < 0.5:
        for x, y, r in ((0.5, 0.26, 0.23), (0.3, 0.44, 0.22), (0.7, 0.44, 0.22), (0.5, 0.48, 0.22)):
            drawing.oval(x, y, r, r, shade(green, rng.normal(0, 10)))
    else:
        for top, bottom, half in ((0.02, 0.38, 0.24), (0.2, 0.58, 0.34), (0.38, 0.78, 0.42)):
            drawing.fill(
                [(0.5, top), (0.5 + half, bottom), (0.5 - half, bottom)], shade(green, rng.normal(0, 10))
            )
    return drawing


def fish(rng: Rng) -> Drawing:
    """An oval body with a tail fin and an eye."""
    name, body = pick_colour(rng)
    drawing = _blank(name, body, turn=40.0)
    fin = shade(body, -45)
    drawing.fill([(0.68, 0.5), (0.98, 0.24), (0.92, 0.5), (0.98, 0.76)], fin)
    drawing.fill([(0.36, 0.36), (0.5, 0.14), (0.62, 0.36)], fin)
    drawing.oval(0.41, 0.5, 0.38, rng.uniform(0.2, 0.25), body)
    drawing.oval(0.2, 0.45, 0.055, 0.055, (245, 245, 245))
    drawing.oval(0.2, 0.45, 0.028, 0.028, (15, 15, 15))
    drawing.line([(0.3, 0.38), (0.34, 0.5), (0.3, 0.62)], fin, 2)
    return drawing


def flower(rng: Rng) -> Drawing:
    """Petals around a heart, on a stem with a leaf."""
    name, petal = pick_colour(rng, avoid="green")
    drawing = _blank(name, petal, turn=25.0)
    stem = (60, 130, 55)
    drawing.line([(0.5, 0.4), (0.5, 0.98)], stem, 6)
    drawing.oval(0.62, 0.8, 0.13, 0.055, stem, -30)
    count = int(rng.integers(5, 8))
    for angle in np.arange(count) * 2 * np.pi / count + rng.uniform(0, 1):
        x, y = 0.5 + 0.2 * np.cos(angle), 0.34 + 0.2 * np.sin(angle)
        drawing.oval(x, y, 0.15, 0.1, petal, float(np.degrees(angle)))
    drawing.oval(0.5, 0.34, 0.1, 0.1, (240, 200, 50) if name != "yellow" else (150, 80, 30))
    return drawing


def car(rng: Rng) -> Drawing:
    """A low body with a cabin, windows and two wheels."""
    name, body = pick_colour(rng, avoid="black")
    drawing = _blank(name, body)
    drawing.fill([(0.24, 0.5), (0.36, 0.27), (0.68, 0.27), (0.8, 0.5)], body)
    drawing.fill([(0.02, 0.5), (0.9, 0.48), (0.98, 0.58), (0.98, 0.72), (0.02, 0.72)], body)
    drawing.fill([(0.3, 0.48), (0.39, 0.32), (0.5, 0.32), (0.5, 0.48)], (190, 220, 240))
    drawing.fill([(0.54, 0.48), (0.54, 0.32), (0.66, 0.32), (0.73, 0.48)], (190, 220, 240))
    for x in (0.25, 0.75):
        drawing.oval(x, 0.73, 0.12, 0.12, (25, 25, 28))
        drawing.oval(x, 0.73, 0.05, 0.05, (175, 175, 180))
    return drawing


def kite(rng: Rng) -> Drawing:
    """A diamond in four quarters with a tail of bows."""
    name, first = pick_colour(rng)
    drawing = _blank(name, first, turn=35.0)
    second = pick_colour(rng, avoid=name)[1]
    top, right, bottom, left, centre = (0.5, 0.02), (0.82, 0.3), (0.5, 0.68), (0.18, 0.3), (0.5, 0.3)
    for corners, colour in (
        ([top, right, centre], first),
        ([right, bottom, centre], second),
        ([bottom, left, centre], first),
        ([left, top, centre], second),
    ):
        drawing.fill(corners, colour)
    drawing.line([bottom, (0.42, 0.78), (0.56, 0.87), (0.46, 0.97)], shade(second, -40), 4)
    for x, y in ((0.43, 0.78), (0.55, 0.87)):
        drawing.fill(
            [(x - 0.09, y - 0.05), (x + 0.09, y + 0.05), (x + 0.09, y - 0.05), (x - 0.09, y + 0.05)], first
        )
    return drawing


def mushroom(rng: Rng) -> Drawing:
    """A domed cap with pale spots on a thick pale stem."""
    name, cap = pick_colour(rng, avoid="white")
    drawing = _blank(name, cap, turn=25.0)
    stem = shade((235, 222, 196), rng.normal(0, 8))
    drawing.fill([(0.38, 0.45), (0.62, 0.45), (0.68, 0.97), (0.32, 0.97)], stem)
    angles = np.linspace(np.pi, 2 * np.pi, 24)
    height = rng.uniform(0.4, 0.48)
    drawing.fill([(0.5 + 0.46 * np.cos(t), 0.54 + height * np.sin(t)) for t in angles], cap)
    for x, y, r in ((0.5, 0.24, 0.075), (0.27, 0.4, 0.06), (0.72, 0.38, 0.065), (0.47, 0.45, 0.045)):
        drawing.oval(x, y, r, r * 0.85, (246, 242, 232))
    return drawing


def boat(rng: Rng) -> Drawing:
    """A hull with a mast and two sails."""
    name, hull = pick_colour(rng, avoid="white")
    drawing = _blank(name, hull)
    sail = (
        shade(COLOURS["white"], -rng.uniform(0, 14))
        if rng.random() < 0.6
        else pick_colour(rng, avoid=name)[1]
    )
    drawing.fill([(0.5, 0.04), (0.9, 0.62), (0.5, 0.62)], sail)
    drawing.fill([(0.44, 0.16), (0.44, 0.62), (0.14, 0.62)], shade(sail, -22))
    drawing.line([(0.47, 0.03), (0.47, 0.72)], (90, 60, 35), 4)
    drawing.fill([(0.03, 0.7), (0.97, 0.7), (0.78, 0.94), (0.2, 0.94)], hull)
    return drawing


_NOUNS: dict[str, Callable[[Rng], Drawing]] = {
    "house": house,
    "tree": tree,
    "fish": fish,
    "flower": flower,
    "car": car,
    "kite": kite,
    "mushroom": mushroom,
    "boat": boat,
}


def draw(name: str, rng: Rng) -> Drawing:
    """One thing by class name, its colours and proportions drawn from `rng`."""
    return composition(name, rng) if name in COMPOSITIONS else _NOUNS[name](rng)
