"""The classes that published checkpoints were trained on: they carry the number only, not the names."""

from __future__ import annotations

from twostage.data import vocabularies
from twostage.vocabulary import Vocabulary

_LISTS = {156: ("coco_stuff", True), 171: ("coco_stuff", False), 15: ("voc", True), 20: ("voc", False)}
"""Number of trained classes -> the class list, and whether only its seen classes were trained."""


def trained_words(count: int) -> Vocabulary | None:
    """The vocabulary behind a number of trained classes, all of them seen; None for any other number."""
    if count not in _LISTS:
        return None
    name, seen_only = _LISTS[count]
    whole = vocabularies.load(name).vocabulary
    flags = whole.seen if seen_only and whole.seen is not None else (True,) * len(whole)
    names = tuple(synonyms for synonyms, seen in zip(whole.names, flags, strict=True) if seen)
    return Vocabulary(names, seen=(True,) * len(names))


def known_counts() -> tuple[int, ...]:
    """Numbers of classes that stand for a list."""
    return tuple(sorted(_LISTS))
