"""The twenty words of the embedded world and which of them training may see."""

from __future__ import annotations

from twostage.vocabulary import Vocabulary

STUFF = ("grass", "sand", "water", "brick", "snow", "gravel")
PATTERNS = ("striped", "dotted", "checkered")
COMPOSITIONS = tuple(f"{pattern} {shape}" for shape in ("ball", "star") for pattern in PATTERNS)
NOUNS = ("house", "tree", "fish", "flower", "car", "kite", "mushroom", "boat")
THINGS = COMPOSITIONS + NOUNS
CLASSES = STUFF + THINGS
UNSEEN = ("gravel", "checkered ball", "dotted star", "mushroom", "boat")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 40),
    "orange": (235, 135, 35),
    "yellow": (240, 210, 60),
    "green": (60, 150, 65),
    "blue": (50, 90, 200),
    "purple": (130, 70, 165),
    "pink": (235, 135, 175),
    "brown": (125, 80, 45),
    "black": (35, 35, 40),
    "white": (238, 238, 235),
}
"""Ten nuisance colours: they say nothing about the class."""


def vocabulary() -> Vocabulary:
    """All twenty classes with seen flags; index = label in this world's maps."""
    return Vocabulary(tuple((name,) for name in CLASSES), tuple(name not in UNSEEN for name in CLASSES))
