"""Fold mIoU and FB-IoU against slow loops over pixels, and the pair-wise evaluation of a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.data.folds import Split
from twostage.data.sample import Sample
from twostage.errors import TwostageError
from twostage.evaluation.binary import PairCounts, PairMetrics, compute_pairs, mean_over_folds
from twostage.evaluation.pairs import PairRule, evaluate_pairs
from twostage.types import DenseScores, PixelScores, TextBank
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary.from_words("a, b, c, d")
SPLIT = Split((0, 1), (2, 3))


def draw(seed: int) -> tuple[int, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (5, 7), generator=generator)
    found = torch.rand(5, 7, generator=generator) > 0.4
    return int(torch.randint(0, 4, (), generator=generator)), found, labels


@pytest.mark.parametrize("void_is_background", [False, True])
def test_against_loops_over_pixels(void_is_background: bool) -> None:
    counts, pairs = PairCounts(4), [draw(seed) for seed in range(12)]
    for label, found, labels in pairs:
        counts.update(label, found, labels, void_is_background)
    metrics = compute_pairs(counts, WORDS, SPLIT)

    def iou(wanted: Sequence[int], foreground: bool) -> float:
        both = either = 0
        for label, found, labels in pairs:
            for y in range(5):
                for x in range(7):
                    if label not in wanted or (int(labels[y, x]) == -1 and not void_is_background):
                        continue
                    said = bool(found[y, x]) == foreground
                    true = (int(labels[y, x]) == label) == foreground
                    both, either = both + (said and true), either + (said or true)
        return 100 * both / either

    assert {label for label, _, _ in pairs} == {0, 1, 2, 3}
    assert metrics.unseen == pytest.approx((iou([2], True) + iou([3], True)) / 2)
    assert metrics.seen == pytest.approx((iou([0], True) + iou([1], True)) / 2)
    assert metrics.FB_IoU == pytest.approx((iou([2, 3], True) + iou([2, 3], False)) / 2)
    assert metrics.FB_IoU_seen == pytest.approx((iou([0, 1], True) + iou([0, 1], False)) / 2)
    assert metrics.as_dict()["hIoU"] == pytest.approx(2 / (1 / metrics.seen + 1 / metrics.unseen))
    assert [one.held_out for one in metrics.classes] == [False, False, True, True]
    assert sum(one.pairs for one in metrics.classes) == 12


def test_classes_without_a_pair_are_no_zero() -> None:
    counts = PairCounts(4)
    full = torch.ones(2, 2, dtype=torch.bool)
    counts.update(2, full, torch.full((2, 2), 2))
    metrics = compute_pairs(counts, WORDS, SPLIT)
    assert (metrics.unseen, metrics.seen, metrics.FB_IoU_seen) == (100.0, None, None)
    assert metrics.FB_IoU is None, "no background anywhere"
    other = PairCounts(4)
    other.update(3, full, torch.zeros(2, 2, dtype=torch.int64))
    counts.merge(other)
    assert compute_pairs(counts, WORDS, SPLIT).unseen == 50.0
    outside = compute_pairs(counts, WORDS, Split((0,), (2,))).classes[3]
    assert outside.held_out is None


def test_mean_over_folds() -> None:
    one = PairMetrics(10.0, 20.0, 50.0, None, ())
    mean = mean_over_folds([one, replace(one, unseen=30.0, seen=None)])
    assert (mean.unseen, mean.seen, mean.FB_IoU, mean.FB_IoU_seen) == (20.0, None, 50.0, None)


def test_counts_refuse() -> None:
    flat = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(LabelError, match="at least one class"):
        PairCounts(0)
    with pytest.raises(LabelError, match=r"class 4 lies outside 0\.\.3"):
        PairCounts(4).update(4, flat > 0, flat)
    with pytest.raises(LabelError, match="expected a bool map"):
        PairCounts(4).update(0, flat, flat)
    with pytest.raises(LabelError, match="expected 4 classes, got 3"):
        PairCounts(4).merge(PairCounts(3))
    with pytest.raises(LabelError, match="a vocabulary of 4"):
        compute_pairs(PairCounts(3), WORDS, SPLIT)


class Truth:
    """Answers with the row of its text bank that a pixel's red value names; a grid half as fine."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        rows = text.features.argmax(dim=1)
        self.asked.append(rows.tolist())
        return [DenseScores(2.0 * (image[0][None] == rows[:, None, None]).float() - 1) for image in images]


class Scenes:
    name, vocabulary = "scenes", WORDS

    def __init__(self, *labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        image = self.labels[index].clamp(min=0).to(torch.uint8)[None].expand(3, -1, -1)
        return Sample(image.contiguous(), self.labels[index].int(), str(index))


BANK = TextBank(torch.eye(4), torch.arange(4), 4)
LEFT_RIGHT = torch.tensor([[2, 2, 0, 0]] * 4)


def test_only_present_classes_that_take_part_are_asked() -> None:
    head = Truth()
    scenes = Scenes(LEFT_RIGHT, torch.full((4, 4), 1), torch.full((4, 4), -1))
    outcome = evaluate_pairs(head, scenes, BANK, Split((0,), (2, 3)), PairRule(), TestSize())
    assert head.asked == [[0, 2]]
    metrics = outcome.metrics[""]
    assert (metrics.unseen, metrics.seen, metrics.FB_IoU) == (100.0, 100.0, 100.0)
    assert (outcome.images, outcome.pairs) == (3, 2)
    assert evaluate_pairs(head, scenes, BANK, SPLIT, PairRule(), TestSize(), max_images=1).images == 1


def test_thresholds_and_the_largest() -> None:
    rule = PairRule((-2.0, 0.0, 2.0))
    found = evaluate_pairs(Truth(), Scenes(LEFT_RIGHT), BANK, SPLIT, rule, TestSize()).metrics
    assert {name: one.unseen for name, one in found.items()} == {" > -2": 50.0, " > 0": 100.0, " > 2": 0.0}
    head = Truth()
    best = evaluate_pairs(head, Scenes(LEFT_RIGHT), BANK, SPLIT, PairRule(argmax=True), TestSize())
    assert best.metrics[" argmax"].unseen == 100.0
    assert head.asked == [[0, 1, 2, 3]]


def test_cells_beyond_the_photo_are_cut_off() -> None:
    """A head with cells of 4 pixels on a photo of 6 x 6: the right third of its second column is beyond."""

    class Cells(Truth):
        def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
            logits = torch.tensor([[[-1.0, 1.0], [-1.0, 1.0]]]).expand(text.num_classes, -1, -1)
            return [PixelScores(logits, stride=4, image_hw=(6, 6)) for _ in images]

    labels = torch.zeros(6, 6, dtype=torch.int64)
    labels[:, 4:] = 2
    found = evaluate_pairs(Cells(), Scenes(labels), BANK, Split((), (2,)), PairRule(), TestSize())
    assert found.metrics[""].unseen == 100.0


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(TwostageError, match="no photos to evaluate"):
        evaluate_pairs(Truth(), Scenes(), BANK, SPLIT, PairRule(), TestSize())

    class Bare(Scenes):
        def __getitem__(self, index: int) -> Sample:
            return replace(super().__getitem__(index), labels=None)

    with pytest.raises(TwostageError, match="0 has no ground truth"):
        evaluate_pairs(Truth(), Bare(LEFT_RIGHT), BANK, SPLIT, PairRule(), TestSize())
    for thresholds in ((), (1.0, 1.0)):
        with pytest.raises(TwostageError, match="one or more different logits"):
            PairRule(thresholds)


def test_photos_that_are_left_out() -> None:
    class Broken(Scenes):
        broken = 1

        def __getitem__(self, index: int) -> Sample:
            if index == self.broken:
                raise LabelError(f"photo {index}: broken")
            return super().__getitem__(index)

    arguments = (BANK, Split((0,), (2, 3)), PairRule(), TestSize())
    with pytest.raises(LabelError, match="photo 1"):
        evaluate_pairs(Truth(), Broken(LEFT_RIGHT, LEFT_RIGHT), *arguments)
    outcome = evaluate_pairs(
        Truth(), Broken(LEFT_RIGHT, LEFT_RIGHT, LEFT_RIGHT.T), *arguments, skip_broken=True
    )
    whole = evaluate_pairs(Truth(), Scenes(LEFT_RIGHT, LEFT_RIGHT.T), *arguments)
    assert outcome.failed == ("photo 1: broken",)
    assert (outcome.metrics, outcome.images, outcome.pairs) == (whole.metrics, 2, whole.pairs)
    Broken.broken = 0
    with pytest.raises(TwostageError, match="not one of 1 photos could be evaluated; the first: photo 0"):
        evaluate_pairs(Truth(), Broken(LEFT_RIGHT), *arguments, skip_broken=True)
