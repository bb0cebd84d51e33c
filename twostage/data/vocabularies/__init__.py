"""The class lists of the benchmark data sets, as files of the classes.json kind.

Class k has id k in prepared label maps. Names are the published ones, word for word, since CLIP is shown
nothing else: COCO-Stuff keeps its suffixes ("wall-other"), VOC its joined words ("pottedplant"), ADE20K its
commas ("road, route" is one name). `seen` flags stand where a zero-shot split is part of the data set.

Seven lists are those of dense evaluations, with other words or with a background: voc20 and voc21,
pascal_context_60, coco_object; "_plain" has no synonyms. Their ids are the values that they read in prepared
maps (datasets/README.md).
"""

from __future__ import annotations

import functools
from pathlib import Path

from twostage.data.class_list import ClassList, read_class_list
from twostage.data.errors import DatasetError
from twostage.vocabulary import nearest

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """What `load` knows, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@functools.cache
def load(name: str) -> ClassList:
    """The class list called `name`: coco_stuff, voc, pascal_context_59, ade20k_150, ...

    Raises:
        DatasetError: there is no such list; the message has the nearest.
    """
    if name not in names():
        raise DatasetError(f"There is no class list {name!r} in the package.{nearest(name, names())}")
    return read_class_list(FOLDER / f"{name}.json")
