"""Which classes are learned from and which are held out, in the manner of PASCAL-5i and COCO-20i.

PASCAL-5i (Shaban et al., "One-Shot Learning for Semantic Segmentation", BMVC 2017): fold s holds out VOC's
classes 5s + 1 ... 5s + 5. COCO-20i has two readings in the wild: of the eighty things, counted from 0, fold s
holds out 20s ... 20s + 19, or s, s + 4, s + 8, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twostage.data.errors import DatasetError
from twostage.vocabulary import Vocabulary, nearest

ORDERS = ("contiguous", "interleaved")


def fold_flags(classes: int, fold: int, folds: int, order: str = "contiguous") -> tuple[bool, ...]:
    """One flag a class, False for those that fold `fold` of `folds` holds out. Folds are of equal size.

    Raises:
        DatasetError: no such fold or order, or the classes cannot be shared evenly.
    """
    if order not in ORDERS:
        raise DatasetError(f"Folds: unknown order {order!r}.{nearest(order, ORDERS)}")
    if folds < 2 or classes < folds or classes % folds:
        raise DatasetError(
            f"Folds: {classes} classes cannot be shared evenly by {folds} folds; take a divisor of "
            f"{classes}, two or more."
        )
    if not 0 <= fold < folds:
        raise DatasetError(f"Folds: there is no fold {fold} among {folds}; choose one of 0..{folds - 1}.")
    size = classes // folds
    if order == "interleaved":
        return tuple(position % folds != fold for position in range(classes))
    return tuple(position // size != fold for position in range(classes))


def pascal_5i(fold: int) -> tuple[bool, ...]:
    """Seen flags of VOC's twenty classes in their usual order, background not counted."""
    return fold_flags(20, fold, 4)


def coco_20i(fold: int, order: str = "contiguous") -> tuple[bool, ...]:
    """Seen flags of COCO's eighty things in the order of their ids."""
    return fold_flags(80, fold, 4, order)


@dataclass(frozen=True)
class Split:
    """Positions in a vocabulary. base: learned from; held_out: never shown, and judged; what is in neither is
    background to both.
    """

    base: tuple[int, ...]
    held_out: tuple[int, ...]

    @property
    def taking_part(self) -> tuple[int, ...]:
        """Base and held-out classes in the vocabulary's order."""
        return tuple(sorted((*self.base, *self.held_out)))

    @classmethod
    def of_flags(cls, flags: Sequence[bool]) -> Split:
        """The seen classes as base, the others held out."""
        return cls(
            tuple(position for position, seen in enumerate(flags) if seen),
            tuple(position for position, seen in enumerate(flags) if not seen),
        )


def split_of(
    vocabulary: Vocabulary, fold: int | None, folds: int = 4, order: str = "contiguous", classes: int = 0
) -> Split:
    """The split of a data set's classes.

    fold: None follows the vocabulary's own flags (all are base where it has none); classes: only the first so
    many take part, 0 for all.

    Raises:
        DatasetError: as `fold_flags`, or fewer classes than are to take part, or none to learn from.
    """
    if classes > len(vocabulary):
        raise DatasetError(f"Folds: {classes} classes should take part, the list has {len(vocabulary)}.")
    count = classes or len(vocabulary)
    if fold is not None:
        return Split.of_flags(fold_flags(count, fold, folds, order))
    split = Split.of_flags((vocabulary.seen or (True,) * count)[:count])
    if not split.base:
        raise DatasetError("Folds: every class is held out, nothing is left to train on.")
    return split
