"""Masks that stage two is not shown: the proof that labels stay, against brute force, and the switches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_parts import bank
from torch import Tensor

from twostage.ensembles.geometric import GeometricEnsemble
from twostage.ensembles.per_pixel import PerPixelEnsemble
from twostage.errors import TwostageError
from twostage.segmenter import Segmenter, Words
from twostage.skipping import Skip, choose
from twostage.test_time import TestTime
from twostage.types import DenseScores, Evidence, Proposals, RegionScores, TextBank
from twostage.views import TestSize, Views
from twostage.vocabulary import Vocabulary

CLASSES = 4
VOCABULARY = Vocabulary((("a",), ("b",), ("c",), ("d",)), seen=(True, True, False, False))
WORDS = Words(VOCABULARY, bank(CLASSES))


def scene(seed: int, count: int = 7, size_hw: tuple[int, int] = (12, 10)) -> Evidence:
    """Masks that overlap, with a peaked opinion of stage one, and a dense map; everything but regions."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.randn(count, 4, 3, generator=draw) * 4
    masks = torch.nn.functional.interpolate(small[None], (9, 7), mode="bilinear")[0].sigmoid()
    logits = torch.randn(count, CLASSES, generator=draw) * 5
    opinion = RegionScores(logits, torch.ones(count, dtype=torch.bool), torch.randn(count, generator=draw))
    found = Proposals(masks, opinion.probs().amax(dim=1), logits=opinion)
    dense = DenseScores(torch.randn(CLASSES, 3, 3, generator=draw) * 2)
    return Evidence(size_hw, found, opinion, dense=dense)


def sharp(seed: int, count: int = 7) -> RegionScores:
    draw = torch.Generator().manual_seed(1000 + seed)
    return RegionScores(torch.randn(count, CLASSES, generator=draw) * 6, torch.ones(count, dtype=torch.bool))


OPTIONS = [
    {},
    {"weight": 0.3, "seen_weight": 0.3},
    {"weight": 0.0},
    {"dense_weight": 0.4, "dense_pixel_weight": 0.3, "uncovered": "dense"},
    {"empty": "drop", "uncovered": "void"},
    {"use": ("regions", "dense"), "dense_weight": 0.5},
    {"prune": "dense", "prune_top": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_settled_label_never_changes_whatever_is_said_of_the_other_masks(options: dict) -> None:
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(**options))
    settled_somewhere = 0
    for seed in range(6):
        known, said = scene(seed), sharp(seed)
        looked = torch.arange(7) < 5
        bounds = ensemble.pixel_bounds(known, VOCABULARY)
        bounds.tell(said, looked)
        open_pixels = set(bounds.unsettled().tolist())
        settled_somewhere += 120 - len(open_pixels)
        labels = []
        for trial in range(30):
            other = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(trial)) * 30
            mixed = replace(said, logits=torch.where(looked[:, None], said.logits, other))
            labels.append(ensemble.merge(replace(known, regions=mixed), VOCABULARY).labels.flatten())
        changed = (torch.stack(labels) != labels[0]).any(dim=0).nonzero()[:, 0].tolist()
        assert set(changed) <= open_pixels
        everything = torch.arange(120)
        assert set(bounds.still_unsettled(everything).tolist()) >= set(changed)
        bounds.tell(said, torch.ones(7, dtype=torch.bool))
        assert len(bounds.unsettled()) == 0
    if options.get("weight", 1) > 0:
        assert settled_somewhere > 25  # the bound is of some use here


class Counting:
    """Names masks by fixed scores that it finds by the masks' first pixel; counts what it is shown."""

    per_mask = True

    def __init__(self, known: Evidence, scores: RegionScores) -> None:
        assert known.proposals is not None
        self.keys = known.proposals.masks[:, 0, 0].tolist()
        self.scores = scores
        self.shown = 0

    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        self.shown += sum(len(found) for found in proposals)
        rows = [[self.keys.index(key) for key in found.masks[:, 0, 0].tolist()] for found in proposals]
        return [self.scores[row] for row in rows]


class Given:
    """Proposes what it was given."""

    def __init__(self, known: Evidence) -> None:
        self.found = known.proposals

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        return [self.found for _ in images]


def run(known: Evidence, scores: RegionScores, skip: Skip) -> tuple[Tensor, int, dict]:
    counting = Counting(known, scores)
    segmenter = Segmenter(GeometricEnsemble.tiny(), Given(known), counting, skip=skip)
    photo = torch.zeros(3, *known.proposals.size_hw, dtype=torch.uint8)
    [made] = segmenter.segment([photo], WORDS)
    return made.labels, counting.shown, made.info


def big_scene(seed: int) -> tuple[Evidence, RegionScores]:
    """Two sure masks that halve the picture, and twenty that are hardly there."""
    known, scores = scene(seed, 22), sharp(seed, 22)
    even = replace(known.stage_one, logits=known.stage_one.logits * 0)
    masks = known.proposals.masks * 1e-6
    masks[0, :, :3], masks[1, :, 3:] = 1.0, 1.0
    masks[:, 0, 0] += torch.arange(22) * 1e-7
    found = replace(known.proposals, masks=masks, logits=even)
    return replace(known, proposals=found, stage_one=even), scores


def test_bounded_skipping_keeps_every_label_and_leaves_masks_out() -> None:
    for seed in range(5):
        known, scores = big_scene(seed)
        scores = replace(scores, logits=scores.logits.index_fill(0, torch.tensor([0, 1]), 0.0))
        scores.logits[0, 1], scores.logits[1, 2] = 40.0, 40.0
        full, shown, _ = run(known, scores, Skip())
        few, fewer, info = run(known, scores, Skip(bounded=True))
        assert torch.equal(full, few)
        assert shown == 22
        assert fewer <= 8
        assert info["looked"] == fewer


def test_the_tolerance_is_never_passed() -> None:
    for seed in range(20):
        known, scores = scene(seed), sharp(seed)
        full, _, _ = run(known, scores, Skip())
        few, fewer, _ = run(known, scores, Skip(bounded=True, tolerance=0.2))
        assert (full != few).float().mean() <= 0.2
        assert fewer <= 7


def test_copies_take_the_scores_of_the_better_mask() -> None:
    known, scores = scene(0, 5), sharp(0, 5)
    masks = torch.zeros(5, 40, 40)
    masks[0, :20], masks[1, :19], masks[2, 20:], masks[3, :, :20], masks[4, 20:] = 1, 1, 1, 1, 1
    masks[:, 0, 0] = torch.arange(5) * 1e-3  # keys; row 0 loses a pixel
    found = Proposals(masks, torch.tensor([0.3, 0.9, 0.5, 0.4, 0.6]), logits=known.stage_one)
    choice = choose(Skip(duplicates=0.9), found)
    assert choice.like.tolist() == [1, 1, 4, 3, 4]
    assert choice.asked.tolist() == [False, True, False, True, True]
    known = replace(known, proposals=found)
    labels, shown, info = run(known, scores, Skip(duplicates=0.9))
    assert shown == 3
    assert info["looked"] == 3
    copied = replace(scores, logits=scores.logits[[1, 1, 4, 3, 4]])
    assert torch.equal(labels, run(known, copied, Skip())[0])


def test_losers_keep_an_even_opinion_and_empty_masks_stay_empty() -> None:
    masks = torch.zeros(4, 40, 40)
    masks[0, :, :20], masks[1, :, 20:], masks[2, :, :20] = 0.9, 0.9, 0.8
    masks[:, 0, 0] = torch.arange(4) * 1e-3
    found = Proposals(masks, torch.ones(4))
    choice = choose(Skip(winners=100), found)
    assert choice.asked.tolist() == [True, True, False, True]  # the last one is empty: asking costs nothing
    assert choose(Skip(winners=1), found).asked.tolist() == [True, True, False, True]


def test_a_photo_without_masks_is_no_trouble() -> None:
    known = scene(0)
    none = replace(known, proposals=known.proposals[:0], stage_one=known.stage_one[:0])
    for skip in (Skip(bounded=True), Skip(duplicates=0.5, winners=3)):
        labels, shown, _ = run(none, sharp(0), skip)
        assert labels.shape == known.proposals.size_hw
        assert shown == 0


def test_who_cannot_prove_it_says_so() -> None:
    with pytest.raises(TwostageError, match="geometric"):
        Segmenter(
            PerPixelEnsemble.tiny(), Given(scene(0)), Counting(scene(0), sharp(0)), skip=Skip(bounded=True)
        )
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(prune="regions", prune_top=2))
    with pytest.raises(TwostageError, match="prune"):
        ensemble.pixel_bounds(scene(0), VOCABULARY)
    ensemble = GeometricEnsemble(GeometricEnsemble.Config(use=("stage_one",)))
    with pytest.raises(TwostageError, match="no label depends"):
        ensemble.pixel_bounds(scene(0), VOCABULARY)


def test_other_ensembles_get_evidence_of_every_mask() -> None:
    known, scores = big_scene(0)
    counting = Counting(known, scores)
    segmenter = Segmenter(GeometricEnsemble.tiny(), Given(known), counting, skip=Skip(bounded=True))
    photo = torch.zeros(3, *known.proposals.size_hw, dtype=torch.uint8)
    segmenter.for_any_ensemble().gather([photo], WORDS)
    assert counting.shown == 22


def test_several_views_need_every_mask() -> None:
    known, scores = big_scene(0)
    counting, photo = Counting(known, scores), torch.zeros(3, 9, 7, dtype=torch.uint8)
    mirrored = TestTime(Views((TestSize(),), flip=True))
    segmenter = Segmenter(GeometricEnsemble.tiny(), Given(known), counting, skip=Skip(bounded=True))
    replace(segmenter, test_time=mirrored).gather([photo], WORDS)
    assert counting.shown == 22


def test_a_look_at_the_whole_photo_is_not_saved_by_leaving_masks_out() -> None:
    class Whole(Counting):
        per_mask = False

    with pytest.raises(TwostageError, match="whole photo"):
        Segmenter(GeometricEnsemble.tiny(), None, Whole(scene(0), sharp(0)), Given(scene(0)), skip=Skip(True))
