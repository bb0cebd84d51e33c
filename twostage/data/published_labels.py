"""From the numbers in the published label files to the classes of our class lists.

Prepared label maps hold contiguous ids, 0 for the first class of the list. Here stands which published value
each class has and which values carry no class, for every data set whose published files hold numbers.
(ADE20K's full set names its objects instead; its class list is matched by name.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostage.data.errors import DatasetError, LabelError
from twostage.vocabulary import nearest

PASCAL_CONTEXT_59_OF_459 = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144),
    *(158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354),
    *(355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
"""The 59 frequent classes, as category ids of the 459-class annotation, ascending."""

_COCO_THINGS_WITHOUT_PIXELS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Thing categories that COCO announced and never annotated; stored values, one below the category id."""

_CITYSCAPES_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""labelIds of the 19 evaluated classes, in the order of their trainIds."""


@dataclass(frozen=True)
class PublishedLabels:
    """values: the published value of each class, in the order of the class list; ignored: values without a
    class.
    """

    values: tuple[int, ...]
    ignored: tuple[int, ...]

    def to_contiguous(self, raw: NDArray[np.integer], void: int, source: str) -> NDArray[np.uint16]:
        """raw (H, W), published values -> (H, W) uint16, 0..K-1, `void` where ignored.

        Raises:
            LabelError: values that are neither a class nor ignored; the message names source and values.
        """
        strange = -1
        table = np.full(max(*self.values, *self.ignored) + 2, strange, dtype=np.int32)
        table[list(self.ignored)] = void
        table[list(self.values)] = np.arange(len(self.values))
        last = len(table) - 1
        labels = table[np.where((raw < 0) | (raw > last), last, raw)]
        if (labels == strange).any():
            found = np.unique(raw[labels == strange]).tolist()
            values, pixels = ", ".join(map(str, found[:10])), int((labels == strange).sum())
            raise LabelError(
                f"{source}: values {values} ({pixels} pixels) are no published labels of this data set "
                f"(classes {min(self.values)}..{max(self.values)}). Is this the original annotation?"
            )
        return labels.astype(np.uint16)


def _without(values: tuple[int, ...], stop: int) -> tuple[int, ...]:
    """0..stop-1 except `values`."""
    return tuple(value for value in range(stop) if value not in values)


PUBLISHED: dict[str, PublishedLabels] = {
    # stuffthingmaps: COCO category id - 1; 255 is unlabelled.
    "coco_stuff": PublishedLabels(
        _without(_COCO_THINGS_WITHOUT_PIXELS, 182), (*_COCO_THINGS_WITHOUT_PIXELS, 255)
    ),
    # SegmentationClassAug: 0 is background, no class here; 255 is the border.
    "voc": PublishedLabels(tuple(range(1, 21)), (0, 255)),
    # The same with background as class 0.
    "voc21": PublishedLabels(tuple(range(21)), (255,)),
    # trainval_merged.json: category ids 1..459; 0 where nobody annotated.
    "pascal_context_459": PublishedLabels(tuple(range(1, 460)), (0,)),
    "pascal_context_59": PublishedLabels(PASCAL_CONTEXT_59_OF_459, _without(PASCAL_CONTEXT_59_OF_459, 460)),
    # annotations/*.png of the scene parsing challenge: 0 is "other".
    "ade20k_150": PublishedLabels(tuple(range(1, 151)), (0,)),
    # gtFine *_labelIds.png.
    "cityscapes": PublishedLabels(_CITYSCAPES_TRAINED, (*_without(_CITYSCAPES_TRAINED, 34), 255)),
}


def published(class_list: str) -> PublishedLabels:
    """The published values of a class list's classes.

    Raises:
        DatasetError: none are known; the message has the nearest.
    """
    if class_list not in PUBLISHED:
        raise DatasetError(f"No published label values of {class_list!r}.{nearest(class_list, PUBLISHED)}")
    return PUBLISHED[class_list]
