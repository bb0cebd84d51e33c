"""The ensemble against its formula written out with loops over regions, classes and pixels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.ensembles.geometric import GeometricEnsemble
from twostage.interfaces import Ensemble
from twostage.types import VOID, DenseScores, Evidence, Proposals, RegionScores, Segmentation
from twostage.vocabulary import Vocabulary

N, K, H, W = 4, 5, 6, 7
WORDS = Vocabulary.from_words("ant,bee,cat,dog,eel")
FLAGS = (True, False, True, False, False)
FLAGGED = Vocabulary(WORDS.names, FLAGS)


def evidence(size_hw: tuple[int, int] = (H, W), count: int = N, seed: int = 0) -> Evidence:
    """Masks, both opinions and a dense map; mask 2 is empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, H, W, generator=generator)
    masks[2:3] *= 0.3
    valid = torch.ones(count, dtype=torch.bool)
    valid[2:3] = False
    one = RegionScores(
        torch.randn(count, K, generator=generator),
        torch.ones_like(valid),
        torch.randn(count, generator=generator),
    )
    two = RegionScores(2 * torch.randn(count, K, generator=generator), valid)
    dense = DenseScores(torch.randn(K, 3, 4, generator=generator))
    return Evidence(size_hw, Proposals(masks, torch.ones(count)), one, two, dense)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def slow_scores(found: Evidence, w: float, seen: tuple[bool, ...] | None) -> list[list[float]]:
    """The paper's rule: p over K + 1, q over K classes, q = 1 for empty masks, exponents swap by flag."""
    assert found.stage_one is not None
    assert found.stage_one.no_object is not None
    assert found.regions is not None
    table = []
    for row in range(len(found.stage_one)):
        p = softmax([*found.stage_one.logits[row].tolist(), found.stage_one.no_object[row].item()])[:-1]
        q = softmax(found.regions.logits[row].tolist())
        valid = bool(found.regions.valid[row])
        if w <= 0:
            table.append(q if valid else [0.0] * len(q))
            continue
        q = q if valid else [1.0] * len(q)
        share = [w if seen is not None and seen[k] else 1 - w for k in range(len(q))]
        table.append([p[k] ** share[k] * q[k] ** (1 - share[k]) for k in range(len(q))])
    return table


def slow_map(found: Evidence, table: list[list[float]]) -> Tensor:
    assert found.proposals is not None
    masks = found.proposals.masks
    out = torch.zeros(len(table[0]), *masks.shape[1:], dtype=torch.float64)
    for row, k, y, x in itertools.product(*(range(n) for n in (len(table), *out.shape))):
        out[k, y, x] += table[row][k] * masks[row, y, x].item()
    return out


def merge(found: Evidence, words: Vocabulary = FLAGGED, **options: Any) -> Segmentation:
    return GeometricEnsemble(GeometricEnsemble.Config(scores=True, **options)).merge(found, words)


def scores_of(found: Evidence, words: Vocabulary = FLAGGED, **options: Any) -> Tensor:
    made = merge(found, words, **options).scores
    assert made is not None
    return made


def without(found: Evidence, *parts: str) -> Evidence:
    kept = {
        name: getattr(found, name)
        for name in ("proposals", "stage_one", "regions", "dense")
        if name not in parts
    }
    return Evidence(found.size_hw, **kept)


PAPER = {"use": ("stage_one", "regions")}


def test_role_is_filled() -> None:
    assert isinstance(GeometricEnsemble.tiny(), Ensemble)


@pytest.mark.parametrize("w", [0.8, 0.3, 1.0, 0.0, -1.0])
@pytest.mark.parametrize("words", [FLAGGED, WORDS])
def test_the_formula_of_the_paper(w: float, words: Vocabulary) -> None:
    found = evidence()
    expected = slow_map(found, slow_scores(found, w, words.seen))
    torch.testing.assert_close(
        scores_of(found, words, weight=w, **PAPER).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(merge(found, words, weight=w, **PAPER).labels.long(), expected.argmax(dim=0))


def test_checklist_05_softmax_placement() -> None:
    """Stage one's "no object" takes its share before it is dropped; stage two never sees it."""
    found = evidence(count=1)
    assert found.stage_one is not None
    assert found.regions is not None
    sure = RegionScores(found.stage_one.logits, found.stage_one.valid, torch.full((1,), 50.0))
    nothing = Evidence(found.size_hw, found.proposals, sure, found.regions)
    assert scores_of(nothing, use=("stage_one",)).max() < 1e-15
    ones = Proposals(torch.ones(1, H, W), torch.ones(1))
    alone = scores_of(Evidence(found.size_hw, ones, None, found.regions))
    torch.testing.assert_close(alone.sum(dim=0), torch.ones(H, W))


def test_checklist_09_empty_masks_have_clip_score_one() -> None:
    found = evidence()
    assert found.stage_one is not None
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(weight=0.8))
    made = ensemble.region_scores(found, ("stage_one", "regions"), WORDS)
    assert made is not None
    torch.testing.assert_close(made[0][2], found.stage_one.probs()[2] ** (1 - 0.8))
    assert made[1].all()


def test_checklist_10_exponents_swap_by_flag() -> None:
    found = evidence()
    assert found.stage_one is not None
    assert found.regions is not None
    p, q = found.stage_one.probs()[0], found.regions.probs()[0]
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(weight=0.7))
    for words in (FLAGGED, WORDS):
        made = ensemble.region_scores(found, ("stage_one", "regions"), words)
        assert made is not None
        for k in range(K):
            trusts_stage_one = words.seen is not None and words.seen[k]
            expected = p[k] ** 0.7 * q[k] ** 0.3 if trusts_stage_one else p[k] ** 0.3 * q[k] ** 0.7
            assert made[0][0, k].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("size", [(13, 20), (4, 3), (6, 15)])
@pytest.mark.parametrize("count", [4, 9])
def test_checklist_11_bilinear_on_the_mixed_map_then_argmax(size: tuple[int, int], count: int) -> None:
    """With fewer masks than classes and with more, which take different ways to the same numbers."""
    found = evidence(size, count)
    mixed = slow_map(found, slow_scores(found, 0.8, FLAGS))
    expected = F.interpolate(mixed[None], size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores_of(found, **PAPER).double(), expected, rtol=1e-5, atol=3e-6)
    labels = merge(found, **PAPER).labels
    assert labels.dtype == torch.int32
    assert torch.equal(labels.long(), expected.argmax(dim=0))


def test_labels_do_not_depend_on_the_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    found = evidence((41, 30))
    whole = merge(found, dense_pixel_weight=0.3, uncovered="dense")
    monkeypatch.setattr("twostage.ops.fusion.strips.__defaults__", (1,))
    rows = merge(found, dense_pixel_weight=0.3, uncovered="dense")
    assert torch.equal(whole.labels, rows.labels)


def test_seen_classes_can_have_a_weight_of_their_own() -> None:
    found = evidence()
    torch.testing.assert_close(
        scores_of(found, weight=0.6, seen_weight=0.6, **PAPER), scores_of(found, WORDS, weight=0.6, **PAPER)
    )


def test_absent_parts_are_left_out() -> None:
    found = evidence()
    assert found.stage_one is not None
    torch.testing.assert_close(
        scores_of(without(found, "regions", "dense")),
        slow_map(found, found.stage_one.probs().tolist()).float(),
    )
    clip_only = scores_of(without(found, "stage_one", "dense"))
    torch.testing.assert_close(clip_only, scores_of(found, use=("regions",)))
    torch.testing.assert_close(clip_only, slow_map(found, slow_scores(found, -1, None)).float())
    assert merge(without(found, "dense")).info["parts"] == ("stage_one", "regions")


def test_a_part_that_was_asked_for_must_be_there() -> None:
    with pytest.raises(ValueError, match="configure the missing part"):
        merge(without(evidence(), "dense"), use=("regions", "dense"))
    with pytest.raises(ValueError, match="the evidence has \\[\\]"):
        merge(Evidence((3, 3)))
    with pytest.raises(ValueError, match="without proposals"):
        merge(without(evidence(), "proposals"))
    with pytest.raises(ValueError, match="needs a dense map"):
        merge(without(evidence(), "dense"), uncovered="dense")


def test_parts_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="masks by classes"):
        merge(evidence(), Vocabulary.from_words("ant,bee"), use=("regions",))
    with pytest.raises(ValueError, match="dense map should have 2 classes"):
        merge(evidence(), Vocabulary.from_words("ant,bee"), use=("dense",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use": ("region",)}, "Did you mean 'regions'"),
        ({"empty": "papr"}, "Did you mean 'paper'"),
        ({"uncovered": "nothing"}, "uncovered 'nothing'"),
        ({"weight": 1.2}, "at most 1"),
        ({"dense_weight": -0.1}, "in \\[0, 1\\]"),
        ({"dense_temperature": 0.0}, "above 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricEnsemble.Config(**options)


def test_no_valid_mask_is_class_zero_in_paper_mode_and_void_otherwise() -> None:
    found = evidence()
    assert found.regions is not None
    nothing = RegionScores(found.regions.logits, torch.zeros(N, dtype=torch.bool))
    empty = Evidence(found.size_hw, found.proposals, found.stage_one, nothing)
    assert merge(empty, weight=-1.0).labels.unique().tolist() == [0]
    assert merge(empty, weight=-1.0, empty="drop").labels.unique().tolist() == [VOID]
    assert merge(empty, empty="drop").labels.unique().tolist() == [VOID]
    spoken = Evidence(found.size_hw, found.proposals, None, nothing, found.dense)
    torch.testing.assert_close(
        scores_of(spoken, empty="drop"), scores_of(Evidence(found.size_hw, dense=found.dense))
    )


@pytest.mark.parametrize("count", [0, 1])
def test_few_or_no_masks(count: int) -> None:
    found = without(evidence((9, 9), count), "dense")
    assert merge(found).labels.shape == (9, 9)
    if count == 0:
        assert merge(found).labels.unique().tolist() == [0]
        assert merge(found, empty="drop").labels.unique().tolist() == [VOID]


def test_dropping_takes_empty_masks_out_of_the_sum() -> None:
    found = evidence()
    table = slow_scores(found, 0.8, FLAGS)
    table[2] = [0.0] * K
    torch.testing.assert_close(
        scores_of(found, empty="drop", **PAPER).double(), slow_map(found, table), rtol=1e-5, atol=1e-6
    )


def test_dense_alone_needs_no_masks() -> None:
    dense = evidence().dense
    assert dense is not None
    found = Evidence((9, 16), dense=dense)
    expected = F.interpolate(dense.logits[None], (9, 16), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(scores_of(found, dense_temperature=2.0), (expected / 2).softmax(dim=0))
    assert torch.equal(merge(found).labels.long(), expected.argmax(dim=0))
    assert torch.equal(merge(evidence((9, 16)), use=("dense",)).labels, merge(found).labels)


def test_dense_joins_every_region() -> None:
    found = evidence()
    assert found.regions is not None
    assert found.dense is not None
    assert found.proposals is not None
    # A uniform map inside each cell of a 3 x 7 grid: pooling is then a plain weighted mean over pixels.
    logits = torch.randn(K, 3, 7, generator=torch.Generator().manual_seed(5))
    fine = logits.repeat_interleave(2, dim=1)
    masks = found.proposals.masks
    pooled = torch.stack([(fine * m).sum(dim=(1, 2)) / m.sum() for m in masks])
    q = found.regions.probs() ** 0.75 * (pooled / 3).softmax(dim=1) ** 0.25
    q = q / q.sum(dim=1, keepdim=True) * found.regions.valid[:, None]
    told = Evidence(found.size_hw, found.proposals, None, found.regions, DenseScores(logits))
    made = scores_of(told, dense_weight=0.25, dense_temperature=3.0)
    torch.testing.assert_close(made, slow_map(found, q.tolist()).float(), rtol=1e-5, atol=1e-6)


def test_dense_shares_at_their_ends() -> None:
    found = evidence()
    crops = scores_of(without(found, "stage_one", "dense"))
    torch.testing.assert_close(scores_of(without(found, "stage_one"), dense_weight=0.0), crops)
    pixels = scores_of(found, dense_pixel_weight=1.0)
    torch.testing.assert_close(pixels, scores_of(Evidence(found.size_hw, dense=found.dense)))
    seen = scores_of(without(found, "stage_one"), dense_weight=0.5, dense_seen_weight=0.0)
    assert (seen - scores_of(without(found, "stage_one"), dense_weight=0.5)).abs().max() > 1e-3


def test_dense_joins_every_pixel() -> None:
    found = evidence()
    regions = slow_map(found, slow_scores(found, 0.8, FLAGS))
    dense = scores_of(Evidence(found.size_hw, dense=found.dense)).double()
    expected = (regions / regions.sum(dim=0)) ** 0.6 * dense**0.4
    expected = expected / expected.sum(dim=0)
    made = scores_of(found, dense_weight=0.0, dense_pixel_weight=0.4).double()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


def test_unclaimed_pixels_follow_the_option() -> None:
    found = evidence()
    masks = torch.zeros(1, H, W, dtype=torch.bool)
    masks[0, :3, :4] = True
    scores = RegionScores(torch.tensor([[0.0, 0, 9, 0, 0]]), torch.ones(1, dtype=torch.bool))
    told = Evidence(found.size_hw, Proposals(masks, torch.ones(1)), None, scores, found.dense)
    dense = merge(Evidence(found.size_hw, dense=found.dense)).labels
    for option, rest in (
        ("argmax", torch.zeros_like(dense)),
        ("void", torch.full_like(dense, VOID)),
        ("dense", dense),
    ):
        labels = merge(told, dense_weight=0.0, uncovered=option).labels
        assert torch.equal(labels, torch.where(masks[0], 2, rest))
    undecided = merge(told, dense_weight=0.0, dense_pixel_weight=0.1).labels
    assert torch.equal(undecided[3:], dense[3:])


def test_the_evidence_is_not_changed() -> None:
    found, again = evidence((11, 8)), evidence((11, 8))
    merge(found, dense_pixel_weight=0.5, uncovered="dense")
    for part in ("stage_one", "regions", "dense"):
        assert torch.equal(getattr(found, part).logits, getattr(again, part).logits)
    assert found.proposals is not None
    assert again.proposals is not None
    assert torch.equal(found.proposals.masks, again.proposals.masks)


def test_confidence_is_the_share_of_the_label() -> None:
    found = evidence()
    made = merge(found, WORDS, confidence=True)
    assert made.scores is not None
    assert made.confidence is not None
    share = made.scores.double() / made.scores.double().sum(dim=0)
    expected = share.gather(0, made.labels.long()[None])[0]
    torch.testing.assert_close(made.confidence.double(), expected, rtol=1e-5, atol=1e-6)
    assert merge(found, WORDS).confidence is None
