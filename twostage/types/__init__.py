"""The containers that travel between the stages: small, validated, with methods that return new objects.

Shapes: N proposals, K classes, T text rows (several may belong to one class), D joint embedding width, H x W
pixels.
"""

from twostage.types.base import VOID, ShapeError
from twostage.types.proposals import Proposals
from twostage.types.results import Evidence, Segmentation
from twostage.types.scores import DenseScores, PixelScores, RegionScores, WordScores
from twostage.types.text import TextBank

__all__ = [
    "VOID",
    "DenseScores",
    "Evidence",
    "PixelScores",
    "Proposals",
    "RegionScores",
    "Segmentation",
    "ShapeError",
    "TextBank",
    "WordScores",
]
