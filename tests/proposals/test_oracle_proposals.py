"""Masks cut from labels, drawn by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twostage.proposals.oracle import OracleConfig, OracleProposals
from twostage.registry import ComponentError
from twostage.vocabulary import Vocabulary

LABELS = torch.tensor(
    [
        [2, 2, -1, 0],
        [2, -1, 2, 0],
        [-1, -1, -1, 0],
        [2, -1, -1, 0],
    ],
    dtype=torch.int32,
)


def oracle(**options: Any) -> OracleProposals:
    return OracleProposals(OracleConfig(**options))


def test_one_mask_a_class_in_order() -> None:
    found = oracle().propose_from_labels(LABELS)
    assert found.masks.dtype == torch.bool
    assert torch.equal(found.masks, torch.stack([LABELS == 0, LABELS == 2]))
    assert found.scores.tolist() == [1.0, 1.0]
    assert found.embeddings is None
    assert found.source == "oracle"


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"instances": True, "connectivity": 4}, [4, 3, 1, 1]),
        ({"instances": True, "connectivity": 8}, [4, 4, 1]),
        ({"instances": True, "min_area": 2}, [4, 4]),
        ({"min_area": 5}, [5]),
    ],
)
def test_parts_and_least_areas(options: dict[str, Any], sizes: list[int]) -> None:
    found = oracle(**options).propose_from_labels(LABELS)
    assert found.masks.sum(dim=(1, 2)).tolist() == sizes
    assert int(found.masks.sum(dim=0).max()) == 1  # no pixel twice


def test_corners_join_or_not() -> None:
    diagonal = torch.tensor([[1, -1], [-1, 1]])
    assert len(oracle(instances=True, connectivity=4).propose_from_labels(diagonal)) == 2
    assert len(oracle(instances=True, connectivity=8).propose_from_labels(diagonal)) == 1


@pytest.mark.parametrize("instances", [False, True])
def test_all_ignored_gives_no_mask_of_the_right_size(instances: bool) -> None:
    found = oracle(instances=instances).propose_from_labels(torch.full((3, 5), -1))
    assert found.masks.shape == (0, 3, 5)
    assert found.masks.dtype == torch.bool


def test_what_it_refuses() -> None:
    with pytest.raises(ComponentError, match=r"ground truth.*propose_from_labels"):
        OracleProposals.tiny().propose([torch.zeros((3, 4, 4), dtype=torch.uint8)])
    with pytest.raises(ComponentError, match=r"labels 0\.\.2 for a vocabulary of 2"):
        oracle().propose_from_labels(LABELS, Vocabulary((("a",), ("b",))))
    for odd in (torch.zeros((2, 2)), torch.zeros((1, 2, 2), dtype=torch.int64)):
        with pytest.raises(ComponentError, match="of integers"):
            oracle().propose_from_labels(odd)
    with pytest.raises(ComponentError, match="4 or 8, got 6"):
        oracle(connectivity=6)
