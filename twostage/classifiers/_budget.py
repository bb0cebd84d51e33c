"""How many crops go through CLIP together under a memory budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from twostage.errors import TwostageError
from twostage.types import Proposals

MIB = 2**20


def crops_that_fit(max_memory: int, found: Sequence[Proposals], bytes_per_crop: int) -> int:
    """Crops of one batch, at least one.

    max_memory: bytes for the masks, one photo's thresholded masks and its canvas, and the batch; found: the
    masks of all photos that are looked at together.

    Raises:
        TwostageError: not even one crop fits; the message says what would be enough.
    """
    masks = sum(one.masks.numel() * one.masks.element_size() for one in found)
    photo = max((one.size_hw[0] * one.size_hw[1] * (len(one) + 2 * 3 * 4) for one in found), default=0)
    room = (max_memory - masks - photo) // bytes_per_crop
    if room < 1:
        least = math.ceil((masks + photo + bytes_per_crop) / MIB)
        raise TwostageError(
            f"A memory budget of {max_memory / MIB:.0f} MiB is too small for these {sum(map(len, found))} "
            f"masks: stage two needs at least {least} MiB ({least / 1024:.2f} GiB). Raise TEST.MEMORY_GIB, "
            "make the photos smaller (INPUT.MIN_SIZE_TEST), or take fewer masks."
        )
    return int(room)
