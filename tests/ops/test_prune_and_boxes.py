"""Choosing the classes that an image may hold, and boxes around parts of maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.boxes import box_of, enclosed
from twostage.ops.prune import classes_to_keep, pruned


def test_classes_above_the_share_of_the_range_stay() -> None:
    scores = torch.tensor([0.1, 0.5, 0.3, 0.31, 0.2])
    assert classes_to_keep(scores, 0.5).tolist() == [False, True, False, True, False]
    assert classes_to_keep(scores, 0.0).tolist() == [False, True, True, True, True]


def test_a_class_counts_by_its_best_row() -> None:
    scores = torch.tensor([0.0, 0.9, 0.2, 0.1, 0.8])
    class_of = torch.tensor([0, 0, 1, 1, 2])
    assert classes_to_keep(scores, 0.5, class_of, 3).tolist() == [True, False, True]
    assert classes_to_keep(scores, 0.5, class_of).tolist() == [True, False, True]
    assert classes_to_keep(scores, 0.5, class_of, 4).tolist() == [True, False, True, False], (
        "no row, no class"
    )


@pytest.mark.parametrize(("scores", "share"), [([0.4], 0.5), ([0.2, 0.2, 0.2], 0.0), ([0.1, 0.9], 1.0)])
def test_where_none_passes_all_stay(scores: list[float], share: float) -> None:
    assert classes_to_keep(torch.tensor(scores), share).all()


def test_pruned_logits_never_win() -> None:
    logits = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([True, False, True, False, False])
    got = pruned(logits, keep)
    assert torch.equal(got[keep], logits[keep])
    assert set(got.argmax(dim=0).unique().tolist()) == {0, 2}
    assert torch.equal(pruned(logits, torch.ones(5, dtype=torch.bool)), logits)


@pytest.mark.parametrize(
    "scores",
    [torch.zeros(2, 3), torch.zeros(0), torch.tensor([0.1, math.nan]), torch.tensor([0.1, math.inf])],
)
def test_scores_should_be_one_finite_row(scores: Tensor) -> None:
    with pytest.raises(TwostageError, match="row of finite numbers"):
        classes_to_keep(scores)


def test_other_arguments_are_refused() -> None:
    with pytest.raises(TwostageError, match=r"share should be from 0 to 1, got 1\.5"):
        classes_to_keep(torch.rand(3), 1.5)
    with pytest.raises(TwostageError, match=r"class of all 3 rows, got \(2,\)"):
        classes_to_keep(torch.rand(3), 0.5, torch.tensor([0, 1]))
    with pytest.raises(TwostageError, match=r"should be 3 flags, at least one of them true, got \(2,\)"):
        pruned(torch.rand(3, 2), torch.tensor([True, True]))
    with pytest.raises(TwostageError, match="with 0 true"):
        pruned(torch.rand(3, 2), torch.zeros(3, dtype=torch.bool))


def parts(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Connected parts by flood filling, eight neighbours."""
    left = {(y, x) for y, x in mask.nonzero().tolist()}
    found = []
    while left:
        waiting, part = [min(left)], []
        while waiting:
            y, x = waiting.pop()
            if (y, x) in left:
                left.remove((y, x))
                part.append((y, x))
                waiting += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        found.append(part)
    return found


@pytest.mark.parametrize("shape", [(7, 9), (1, 6), (5, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_what_boxes_enclose(shape: tuple[int, int], share: float) -> None:
    maps = torch.rand(6, *shape, generator=torch.Generator().manual_seed(5)) < share
    expected = torch.zeros(6, *shape, dtype=torch.bool)
    for index, mask in enumerate(maps):
        for part in parts(mask):
            rows, columns = [y for y, _ in part], [x for _, x in part]
            bottom = min(max(rows) + 1, max(1, shape[0] - 1))
            right = min(max(columns) + 1, max(1, shape[1] - 1))
            expected[index, min(rows) : bottom, min(columns) : right] = True
    assert torch.equal(enclosed(maps), expected)


def test_box_around_everything_that_is_true() -> None:
    mask = torch.zeros(6, 8, dtype=torch.bool)
    assert box_of(mask) is None
    mask[5, 3] = True
    assert box_of(mask) is None, "the last row is cut off"
    mask[2, 1] = mask[4, 7] = True
    assert box_of(mask) == (2, 1, 5, 7)
    assert box_of(torch.ones(1, 1, dtype=torch.bool)) == (0, 0, 1, 1)
