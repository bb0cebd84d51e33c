"""COCO's run-length code against hand-made cases and a slow writer made straight from its rules."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from twostage.data.rle import RLEError, decode, encode, from_string, to_string


def slow_string(counts: list[int]) -> str:
    """One count, one group of five bits at a time."""
    text = ""
    for place, count in enumerate(counts):
        rest = count - counts[place - 2] if place > 2 else count
        while True:
            group = rest % 32
            rest //= 32
            done = rest == (-1 if group >= 16 else 0)
            text += chr(48 + group + (0 if done else 32))
            if done:
                break
    return text


def slow_counts(mask: np.ndarray) -> list[int]:
    counts, value = [0], False
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if bool(mask[row, column]) != value:
                counts.append(0)
                value = not value
            counts[-1] += 1
    return counts


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([4], "4"),
        ([0, 4], "04"),
        ([15], "?"),
        ([16], "`0"),  # bit 4 would read as a minus, so a zero follows
        ([31], "o0"),
        ([32], "P1"),
        ([1, 5, 1, 2], "151M"),  # 2 - 5 = -3
        ([1, 40, 1, 5], "1X11mN"),  # 5 - 40 = -35
        ([], ""),
    ],
)
def test_hand_made_strings(counts: list[int], text: str) -> None:
    assert to_string(np.array(counts, dtype=np.int64)) == text
    assert slow_string(counts) == text
    assert from_string(text).tolist() == counts
    assert from_string(text.encode()).tolist() == counts


def test_runs_go_down_the_columns() -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 1]], dtype=torch.bool)
    assert encode(mask, compress=False) == {"size": [2, 3], "counts": [2, 1, 1, 2]}
    assert encode(~mask, compress=False) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (37, 53), (480, 640), (0, 3)])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.5, 1.0])
def test_round_trips_and_the_slow_writer_agree(shape: tuple[int, int], density: float) -> None:
    mask = np.random.default_rng(0).random(shape) < density
    compressed, plain = encode(mask), encode(torch.from_numpy(mask), compress=False)
    for rle in (compressed, plain, {**compressed, "counts": str(compressed["counts"]).encode()}):
        np.testing.assert_array_equal(decode(rle).numpy(), mask)
    if mask.size:
        assert plain["counts"] == slow_counts(mask)
        assert compressed["counts"] == slow_string(slow_counts(mask))


def test_large_counts() -> None:
    counts = [2**31 - 1, 1, 2**30, 7, 5, 2**31 - 1]
    assert to_string(np.array(counts)) == slow_string(counts)
    assert from_string(slow_string(counts)).tolist() == counts


@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed")
def test_pycocotools_agrees() -> None:
    from pycocotools import mask as coco

    mask = np.random.default_rng(1).random((61, 47)) < 0.3
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode(mask)["counts"] == theirs["counts"].decode()
    np.testing.assert_array_equal(decode(theirs).numpy(), mask)


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ({"counts": [4]}, "a part is missing"),
        ({"size": [2, 2]}, "a part is missing"),
        ({"size": [2, 2, 2], "counts": [4]}, "a part is missing"),
        ({"size": [2, 2], "counts": ["four"]}, "a part is missing or odd"),
        ({"size": [2, 2], "counts": None}, "a part is missing or odd"),
        ({"size": [2, 2], "counts": [[1, 2], [1]]}, "a part is missing or odd"),
        ({"size": [2, 2], "counts": [2**70]}, "a part is missing or odd"),
        ({"size": [-2, -2], "counts": [4]}, "damaged"),
        ({"size": [2, 2], "counts": [3]}, "cover 3 pixels, the size 2 x 2 has 4"),
        ({"size": [2, 2], "counts": [5, -1]}, "cover 4 pixels"),
        ({"size": [2, 2], "counts": "3"}, "cover 3 pixels"),
        ({"size": [2, 2], "counts": "4 "}, "character"),
        ({"size": [2, 2], "counts": "4é"}, "character"),
        ({"size": [2, 2], "counts": "o"}, "cut off"),
        ({"size": [2, 2], "counts": "oooooooooooo0"}, "too large"),
    ],
)
def test_damaged_codes(rle: dict[str, Any], says: str) -> None:
    with pytest.raises(RLEError, match=says):
        decode(rle)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.zeros((2, 2, 1), dtype=bool)])
def test_only_bool_masks_are_encoded(mask: np.ndarray) -> None:
    with pytest.raises(RLEError, match="expected a bool mask"):
        encode(mask)
