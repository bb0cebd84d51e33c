"""COCO's run-length encoding of masks, both as a list of counts and as its compressed string.

Runs alternate 0, 1, 0, ... down the columns. The string stores each count (from the fourth on, the difference
to the count two before) in groups of five bits, lowest first, bit 5 set where another group follows, 48 added
to each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twostage.data.errors import DataError

_GROUPS = 8
"""Five-bit groups that any difference of 32-bit counts fits in."""


class RLEError(DataError):
    """A run-length encoding contradicts itself."""


def encode(mask: Tensor | np.ndarray, compress: bool = True) -> dict[str, Any]:
    """mask (H, W) bool -> {"size": [H, W], "counts": str (or list of int when compress is False)}.

    Raises:
        RLEError: not a boolean (H, W).
    """
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2 or array.dtype != np.bool_:
        raise RLEError(f"encode: expected a bool mask (H, W), got {array.shape} {array.dtype}.")
    column_major = array.ravel(order="F")
    changes = np.flatnonzero(np.diff(column_major)) + 1
    counts = np.diff(np.concatenate([[0], changes, [column_major.size]]))
    if column_major.size and column_major[0]:
        counts = np.concatenate([[0], counts])
    size = [int(array.shape[0]), int(array.shape[1])]
    return {"size": size, "counts": to_string(counts) if compress else counts.tolist()}


def decode(rle: Mapping[str, Any]) -> Tensor:
    """{"size": [H, W], "counts": str, bytes or list of int} -> (H, W) bool.

    Raises:
        RLEError: the parts are missing, malformed, or the runs do not fill the mask.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        given = rle["counts"]
        text = given if isinstance(given, (str, bytes)) else None
        counts = np.asarray([] if text is not None else given, dtype=np.int64).reshape(-1)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RLEError(
            'decode: expected {"size": [H, W], "counts": ...}, a part is missing or odd.'
        ) from error
    if text is not None:
        counts = from_string(text)
    if min(height, width) < 0 or (counts < 0).any() or counts.sum() != height * width:
        raise RLEError(
            f"decode: the runs cover {int(counts.sum())} pixels, the size {height} x {width} has "
            f"{height * width}. "
            "The file is damaged, or size is given as width x height."
        )
    values = np.arange(len(counts)) % 2 == 1
    return torch.from_numpy(np.repeat(values, counts).reshape((height, width), order="F").copy())


def to_string(counts: np.ndarray) -> str:
    """Counts -> COCO's compressed string."""
    rest = counts.astype(np.int64).copy()
    rest[3:] -= counts[1:-2]
    symbols = np.zeros((len(rest), _GROUPS), dtype=np.uint8)
    used = np.zeros((len(rest), _GROUPS), dtype=bool)
    open_rows = np.ones(len(rest), dtype=bool)
    for group in range(_GROUPS):
        five_bits = rest & 31
        rest = rest >> 5
        # The last group's bit 4 is the sign of the whole number.
        more = np.where(five_bits & 16, rest != -1, rest != 0)
        symbols[:, group] = five_bits + 32 * more + 48
        used[:, group] = open_rows
        open_rows = open_rows & more
    return symbols[used].tobytes().decode("ascii")


def from_string(text: str | bytes) -> np.ndarray:
    """COCO's compressed string -> (R,) int64 counts.

    Raises:
        RLEError: a character outside the code, or a last number that is cut off.
    """
    try:
        raw = text.encode("ascii") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise RLEError("The compressed counts hold a character that COCO's code does not have.") from error
    symbols = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if ((symbols < 0) | (symbols > 63)).any():
        raise RLEError("The compressed counts hold a character that COCO's code does not have.")
    if len(symbols) == 0:
        return np.zeros(0, dtype=np.int64)
    last = symbols < 32
    if not last[-1]:
        raise RLEError("The compressed counts end in the middle of a number: the file is cut off.")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(np.concatenate([starts, [len(symbols)]]))
    if lengths.max() > _GROUPS:
        raise RLEError("The compressed counts hold a number too large for any mask: the file is damaged.")
    place = np.arange(len(symbols)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((symbols & 31) << (5 * place), starts)
    negative = (symbols[np.cumsum(lengths) - 1] & 16) > 0
    numbers = numbers - np.where(negative, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
