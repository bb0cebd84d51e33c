"""Which names of different data sets mean the same class: VOC's "tvmonitor" is COCO's "tv".

Used to tell what a network was trained on, never for what CLIP is shown.
"""

from __future__ import annotations

import functools
import re

SUFFIXES = ("-other", "-stuff", "-merged")
"""What COCO appends to names of stuff."""

SAME = """
airplane, aeroplane, plane
apparel, clothes
bicycle, bike
bookcase, bookshelf
ceiling lamp, ceiling light
cell phone, mobile phone
couch, sofa
cow, cattle
cushion, pillow
dining table, diningtable
donut, doughnut
earth, ground, soil
hair drier, hair dryer
motorcycle, motorbike
pavement, sidewalk
potted plant, pottedplant
refrigerator, fridge, icebox
rock, stone
rug, carpet
shelf, shelves
skyscraper, high-rise
stairs, staircase, stairway
street light, street lamp
tv, television, tv monitor, television set
vegetation, plants
"""
"""One class a line, as data sets call it."""


@functools.cache
def forms(name: str) -> frozenset[str]:
    """Everything that `name` may be matched by: each of its comma-separated parts and what means the same,
    lower case, without blanks and hyphens, without COCO's suffixes.
    """
    found = {_plain(part) for part in name.split(",") if part.strip()}
    return frozenset(found | {word for one in found for word in _table().get(one, ())})


@functools.cache
def _table() -> dict[str, frozenset[str]]:
    rows = [frozenset(_plain(word) for word in line.split(",")) for line in SAME.split("\n") if line]
    return {word: row for row in rows for word in row}


def _plain(name: str) -> str:
    text = name.strip().lower()
    for suffix in SUFFIXES:
        text = text.removesuffix(suffix)
    return re.sub(r"[\s_-]+", "", text)
