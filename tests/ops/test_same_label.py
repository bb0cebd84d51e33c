"""The map of patches that share a label against the rule pair by pair, and cases known by hand."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import dense_records as rec
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.same_label import cell_modes, reached, same_label_map


def draw(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed))


def clear_way(labels: list[list[int]], start: tuple[int, int], end: tuple[int, int], most: int) -> bool:
    """Places start + n / most * (end - start), n up to the pair's own steps, all of the start's label?"""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    for n in range(steps + 1):
        part = Fraction(n, most) if most else Fraction(0)
        row, column = (round(a + part * (b - a)) for a, b in zip(start, end, strict=True))
        if labels[row][column] != labels[start[0]][start[1]]:
            return False
    return True


def slowly(labels: list[list[int]]) -> Tensor:
    """(N, N) float64 of one image."""
    rows, columns = len(labels), len(labels[0])
    most = max(rows, columns) - 1
    places = [(y, x) for y in range(rows) for x in range(columns)]
    kernel = [math.exp(-(t**2) / (2 * 5.0**2)) for t in range(-15, 16)]
    out = torch.zeros(len(places), len(places), dtype=torch.float64)
    for i, start in enumerate(places):
        row = [0.0] * len(places)
        for j, end in enumerate(places):
            if labels[start[0]][start[1]] == labels[end[0]][end[1]]:
                steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
                row[j] = 1.0 if clear_way(labels, start, end, most) else math.exp(-steps / most)
        smooth = [
            sum(kernel[t + 15] / sum(kernel) * row[j + t] for t in range(-15, 16) if 0 <= j + t < len(row))
            for j in range(len(row))
        ]
        out[i] = torch.tensor(smooth) / sum(smooth)
    return out


@pytest.mark.golden
@pytest.mark.parametrize("method", ["resclip", "resclip_sfr", "resclip_sclip_base"])
def test_recorded(method: str) -> None:
    record = rec.case(method)
    labels = torch.tensor(record["maps"]["labels"]["values"]).reshape(1, 14, 14)
    closer = {**record, "tolerance": {"feedback_map": 1e-6}}
    rec.compare(closer, "feedback_map", F.pad(same_label_map(labels), (1, 0, 1, 0)))


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (6, 2), (1, 5), (1, 1)])
@pytest.mark.parametrize("count", [2, 3])
def test_pair_by_pair(grid: tuple[int, int], count: int) -> None:
    labels = draw(count, 2, *grid)
    got = same_label_map(labels)
    assert got.dtype == torch.float32
    for one in range(2):
        torch.testing.assert_close(got[one].double(), slowly(labels[one].tolist()), rtol=1e-5, atol=1e-6)


def test_a_wall_damps_the_pairs_behind_it() -> None:
    """One row of five, another label in the middle: from end to end the way is blocked."""
    ways = reached(torch.tensor([[[1, 1, 0, 1, 1]]]))[0]
    assert ways.diagonal().all()
    assert ways[0].tolist() == [True, True, True, False, False], "near pairs: the first part of the way only"
    assert ways[4].tolist() == [False, False, True, True, True]
    assert ways[2].tolist() == [False, True, True, True, False], "what lies at the end is not part of it"


def test_an_even_image_is_only_smoothed() -> None:
    got = same_label_map(torch.zeros(1, 3, 4, dtype=torch.int64))
    assert reached(torch.zeros(1, 3, 4, dtype=torch.int64)).all()
    assert torch.equal(got[0], got[0, :1].expand(12, 12)), "all rows alike"
    torch.testing.assert_close(got.sum(dim=-1), torch.ones(1, 12))
    torch.testing.assert_close(got[0, 0], got[0, 0].flip(0))


def test_modes_of_cells() -> None:
    labels = draw(3, 2, 6, 8)
    got = cell_modes(labels, (3, 4))
    assert got.shape == (2, 2, 2)
    for b in range(2):
        for y in range(2):
            for x in range(2):
                cell = labels[b, 3 * y : 3 * y + 3, 4 * x : 4 * x + 4].flatten().tolist()
                most = max(Counter(cell).values())
                assert got[b, y, x] == min(one for one, times in Counter(cell).items() if times == most)


def test_labels_that_do_not_divide() -> None:
    with pytest.raises(TwostageError, match=r"\(6, 7\) pixels do not divide into cells of \(3, 2\)"):
        cell_modes(draw(3, 1, 6, 7), (3, 2))
