"""The containers: what they refuse, how they index, the one place where probabilities are settled."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from twostage.types import (
    VOID,
    DenseScores,
    Evidence,
    PixelScores,
    Proposals,
    RegionScores,
    Segmentation,
    ShapeError,
    TextBank,
)

f32, yes = torch.zeros, torch.ones


def scores(count: int, classes: int = 2, no_object: bool = False) -> RegionScores:
    numbers = torch.arange(count * classes, dtype=torch.float32).reshape(count, classes)
    return RegionScores(numbers, yes(count, dtype=torch.bool), f32(count) if no_object else None)


def proposals(count: int) -> Proposals:
    masks = torch.arange(count * 6).reshape(count, 2, 3) % 2 == 0
    return Proposals(
        masks,
        torch.arange(count).float(),
        torch.arange(count * 4.0).reshape(count, 4),
        scores(count),
        "here",
        tuple(f"maker {row}" for row in range(count)),
    )


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "masks of one picture": (lambda: Proposals(f32(2, 3), f32(2)), r"Proposals\.masks: expected \(N, H, W\)"),
    "masks of integers": (
        lambda: Proposals(f32(1, 2, 3).int(), f32(1)),
        "expected bool or float, got torch.int32",
    ),
    "too few scores": (
        lambda: Proposals(f32(2, 3, 3), f32(1)),
        r"Proposals\.scores: expected \(2,\), got \(1,\)",
    ),
    "scores in two axes": (lambda: Proposals(f32(2, 3, 3), f32(2, 1)), r"got \(2, 1\)"),
    "too few embeddings": (
        lambda: Proposals(f32(2, 3, 3), f32(2), f32(1, 4)),
        r"embeddings: expected \(2, D\)",
    ),
    "flat embeddings": (lambda: Proposals(f32(2, 3, 3), f32(2), f32(2)), r"embeddings: expected \(2, D\)"),
    "logits of others": (
        lambda: Proposals(f32(2, 3, 3), f32(2), logits=scores(3)),
        r"Proposals\.logits: expected 2 rows, got 3",
    ),
    "makers of others": (
        lambda: Proposals(f32(2, 3, 3), f32(2), sources=("a",)),
        r"Proposals\.sources: expected 2 names, got 1",
    ),
    "no text": (lambda: TextBank(f32(0, 4), f32(0).long(), 0), "with T > 0"),
    "flat text": (lambda: TextBank(f32(4), f32(4).long(), 1), r"expected \(T, D\)"),
    "a row without class": (lambda: TextBank(f32(2, 4), f32(1).long(), 1), r"class_of: expected \(2,\)"),
    "a class without row": (
        lambda: TextBank(f32(2, 4), f32(2).long(), 2),
        r"every class of 0\.\.1 needs a row",
    ),
    "a class too many": (lambda: TextBank(f32(2, 4), torch.tensor([0, 2]), 2), r"every class of 0\.\.1"),
    "no_object of another width": (
        lambda: TextBank(f32(1, 4), f32(1).long(), 1, no_object=f32(3)),
        r"TextBank\.no_object: expected \(4,\), got \(3,\)",
    ),
    "flat logits": (lambda: RegionScores(f32(3), yes(3, dtype=torch.bool)), r"logits: expected \(N, K\)"),
    "valid too short": (
        lambda: RegionScores(f32(3, 2), yes(2, dtype=torch.bool)),
        r"valid: expected \(3,\) bool",
    ),
    "valid as numbers": (lambda: RegionScores(f32(3, 2), yes(3)), "torch.float32"),
    "no_object too short": (
        lambda: RegionScores(f32(3, 2), yes(3, dtype=torch.bool), f32(2)),
        r"no_object: expected \(3,\)",
    ),
    "dense of a batch": (lambda: DenseScores(f32(1, 2, 3, 4)), r"DenseScores\.logits: expected \(K, h, w\)"),
    "whole image of other classes": (
        lambda: RegionScores(f32(3, 2), yes(3, dtype=torch.bool), image=f32(3)),
        r"RegionScores\.image: expected \(2,\), got \(3,\)",
    ),
    "whole image with an axis": (
        lambda: DenseScores(f32(2, 3, 4), image=f32(1, 2)),
        r"DenseScores\.image: expected \(2,\), got \(1, 2\)",
    ),
    "cells that do not cover": (
        lambda: PixelScores(f32(2, 3, 4), 4, (13, 16)),
        r"\(3, 4\) cells of 4 pixels do not cover an image of \(13, 16\)",
    ),
    "cells without an image": (lambda: PixelScores(f32(2, 3, 4)), r"an image of \(0, 0\)"),
    "embeddings of other cells": (
        lambda: PixelScores(f32(2, 3, 4), 4, (12, 16), f32(8, 4, 3)),
        r"embeddings: expected \(D, 3, 4\), got \(8, 4, 3\)",
    ),
    "labels of a batch": (lambda: Segmentation(f32(1, 2, 3).int()), r"labels: expected \(H, W\)"),
    "soft labels": (lambda: Segmentation(f32(2, 3)), "expected integers, got torch.float32"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ShapeError, match=message):
        make()


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (torch.tensor([2, 0]), [2, 0]),
        (torch.tensor([True, False, True]), [0, 2]),
        (slice(1, None), [1, 2]),
        ([1], [1]),
        ([], []),
    ],
    ids=str,
)
def test_rows_are_picked_everywhere_alike(index: torch.Tensor | slice | list[int], rows: list[int]) -> None:
    whole = proposals(3)
    part = whole[index]
    assert len(part) == len(rows)
    assert part.source == "here"
    assert part.made_by() == tuple(f"maker {row}" for row in rows)
    assert part.size_hw == (2, 3)
    assert part.embeddings is not None
    assert part.logits is not None
    for new, old in enumerate(rows):
        assert torch.equal(part.masks[new], whole.masks[old])
        assert part.scores[new] == whole.scores[old]
        assert torch.equal(part.embeddings[new], torch.arange(4.0) + 4 * old)
        assert torch.equal(part.logits.logits[new], torch.tensor([2.0 * old, 2.0 * old + 1]))


def test_without_extras_rows_and_devices_work_too() -> None:
    bare = Proposals(f32(3, 2, 2), f32(3))
    assert len(bare[[0, 1]]) == 2
    assert bare[[0]].embeddings is None
    assert bare[[0]].sources is None
    assert bare.made_by() == ("", "", "")
    moved = bare.to("meta")
    assert moved.masks.device.type == moved.scores.device.type == "meta"


def test_everything_moves_together() -> None:
    moved = proposals(2).to("meta")
    assert moved.embeddings is not None
    assert moved.logits is not None
    assert {t.device.type for t in (moved.masks, moved.scores, moved.embeddings, moved.logits.logits)} == {
        "meta"
    }
    known = scores(2, no_object=True).to("meta")
    assert known.no_object is not None
    assert known.valid.device.type == known.no_object.device.type == "meta"


def test_proposals_of_several_makers_are_joined() -> None:
    first, second = proposals(3), proposals(2)
    both = Proposals.cat([first, second], "both")
    assert (both.source, len(both)) == ("both", 5)
    assert both.sources == ("maker 0", "maker 1", "maker 2", "maker 0", "maker 1")
    assert torch.equal(both.masks[3:], second.masks)
    assert torch.equal(both.scores, torch.tensor([0.0, 1, 2, 0, 1]))
    assert both.embeddings is not None
    assert torch.equal(both.embeddings[3:], torch.arange(8.0).reshape(2, 4))
    assert both.logits is not None
    assert torch.equal(both.logits.logits[3:], scores(2).logits)
    bare = Proposals(f32(1, 2, 3), yes(1), source="bare")
    both = Proposals.cat([first, bare], "both")
    assert both.masks.dtype == torch.float32
    assert both.embeddings is both.logits is None
    assert both.made_by() == (*first.made_by(), "bare")
    other = Proposals(f32(1, 2, 3), yes(1), f32(1, 7), source="wide")
    assert Proposals.cat([first, other], "both").embeddings is None
    assert Proposals.cat([bare], "one").embeddings is None


def test_scores_are_joined_where_they_can_be_compared() -> None:
    known = RegionScores.cat([scores(2, no_object=True), scores(1, no_object=True)])
    assert known is not None
    assert known.no_object is not None
    assert known.no_object.shape == (3,)
    assert RegionScores.cat([scores(2, no_object=True), scores(1)]) is None
    assert RegionScores.cat([scores(2), scores(2, 3)]) is None
    plain = RegionScores.cat([scores(2), scores(0)])
    assert plain is not None
    assert plain.no_object is plain.image is None
    assert torch.equal(plain.logits, scores(2).logits)


def test_scores_keep_no_object_when_indexed() -> None:
    part = scores(3, no_object=True)[[2]]
    assert part.no_object is not None
    assert part.no_object.shape == (1,)
    assert len(scores(0)) == 0


def test_probabilities_by_hand() -> None:
    plain = RegionScores(torch.tensor([[0.0, math.log(3)]]), torch.tensor([True]))
    torch.testing.assert_close(plain.probs(), torch.tensor([[0.25, 0.75]]))
    with_none = RegionScores(plain.logits, plain.valid, torch.tensor([math.log(4)]))
    torch.testing.assert_close(with_none.probs(), torch.tensor([[0.125, 0.375]]))  # "none" has the other half
    assert scores(0, 5, no_object=True).probs().shape == (0, 5)
    half = RegionScores(plain.logits.half(), plain.valid)
    assert half.probs().dtype == torch.float32


def test_text_logits_are_scaled_cosines() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    bank = TextBank(rows, torch.tensor([0, 1, 2]), 3, logit_scale=10.0)
    assert bank.dim == 2
    torch.testing.assert_close(bank.logits(torch.tensor([[0.0, 1.0]])), torch.tensor([[0.0, 10.0, 8.0]]))


def test_shuffled_rows_come_back_in_class_order() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 5, generator=generator)
    order = torch.tensor([2, 0, 3, 1])
    seen_as = TextBank(rows[torch.argsort(order)], torch.arange(4), 4)
    shuffled = TextBank(rows, order, 4)
    features = torch.randn(2, 3, 5, generator=generator)
    torch.testing.assert_close(shuffled.logits(features), seen_as.logits(features))


def test_a_class_takes_its_best_synonym() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    bank = TextBank(rows, torch.tensor([1, 0, 1]), 2, logit_scale=2.0)
    features = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.5]]])
    expected = torch.tensor([[[0.0, 2.0]], [[1.0, 2.0]]])
    torch.testing.assert_close(bank.logits(features), expected)
    assert bank.logits(f32(0, 2)).shape == (0, 2)
    assert bank.logits(features.half()).dtype == torch.float16


def test_a_bank_moves_whole() -> None:
    whole = TextBank(yes(1, 2), f32(1).long(), 1, 7.0, no_object=yes(2))
    bank = whole.to("cpu")
    assert bank.no_object is not None
    assert torch.equal(bank.no_object, yes(2))
    assert (bank.num_classes, bank.logit_scale) == (1, 7.0)
    assert TextBank(yes(1, 2), f32(1).long(), 1).to("cpu").no_object is None


def test_a_bank_of_some_classes() -> None:
    bank = TextBank(torch.eye(5), torch.tensor([0, 1, 1, 2, 3]), 4, 7.0)
    found = bank.subset([3, 1])
    assert (found.num_classes, found.logit_scale) == (2, 7.0)
    assert found.features.argmax(dim=1).tolist() == [1, 2, 4]
    assert found.class_of.tolist() == [1, 1, 0]
    with pytest.raises(ShapeError, match="class list is empty"):
        bank.subset([])
    for wrong in (4, -1):
        with pytest.raises(ShapeError, match=rf"classes of 0\.\.3, got \[0, {wrong}\]"):
            bank.subset([0, wrong])


def test_absent_evidence_is_none_and_void_is_minus_one() -> None:
    evidence = Evidence((2, 3))
    assert (
        evidence.proposals
        is evidence.stage_one
        is evidence.regions
        is evidence.dense
        is evidence.pixels
        is None
    )
    assert VOID == -1
    assert Segmentation(torch.full((1, 1), VOID, dtype=torch.int32)).info == {}


def test_evidence_of_some_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, valid = torch.randn(2, 4, generator=draw), torch.tensor([True, False])
    first = RegionScores(logits, valid, torch.zeros(2))
    second = RegionScores(logits + 1, valid, image=torch.arange(4.0))
    dense = DenseScores(torch.randn(4, 2, 3, generator=draw), image=torch.arange(4.0) + 1)
    pixels = PixelScores(
        torch.randn(4, 2, 3, generator=draw), 4, (8, 12), torch.randn(5, 2, 3, generator=draw)
    )
    given = Evidence((8, 12), None, first, second, dense, pixels)
    some = given.of_classes(torch.tensor([2, 0]))
    assert some.stage_one is not None
    assert torch.equal(some.stage_one.logits, logits[:, [2, 0]])
    assert some.stage_one.no_object is first.no_object
    assert some.regions is not None
    assert some.regions.image is not None
    assert some.regions.image.tolist() == [2, 0]
    assert torch.equal(some.regions.valid, valid)
    assert some.dense is not None
    assert some.dense.image is not None
    assert some.dense.image.tolist() == [3, 1]
    assert torch.equal(some.dense.logits, dense.logits[[2, 0]])
    assert isinstance(some.pixels, PixelScores)
    assert some.pixels.embeddings is pixels.embeddings
    assert torch.equal(some.pixels.logits, pixels.logits[[2, 0]])
    assert Evidence((8, 12)).of_classes(torch.tensor([0])) == Evidence((8, 12))


def test_scores_move_with_all_they_hold() -> None:
    away = torch.device("meta")
    pixels = PixelScores(torch.zeros(4, 2, 3), 4, (8, 12), torch.zeros(5, 2, 3), image=torch.zeros(4)).to(
        away
    )
    assert pixels.embeddings is not None
    assert pixels.image is not None
    assert {one.device.type for one in (pixels.logits, pixels.embeddings, pixels.image)} == {"meta"}
    regions = RegionScores(torch.zeros(3, 4), torch.ones(3, dtype=torch.bool), image=torch.zeros(4))
    assert regions.to(away).image is not None
    assert regions[[0, 2]].image is regions.image
