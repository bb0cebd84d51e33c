"""Proposal quality against sets of pixels and hand-made geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from twostage.data.errors import LabelError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import compute
from twostage.evaluation.recall import (
    ProposalRecall,
    classes_in,
    mask_iou,
    oracle_labels,
    oracle_scores,
)
from twostage.types import Proposals
from twostage.vocabulary import Vocabulary


def proposals_of(masks: torch.Tensor) -> Proposals:
    return Proposals(masks, torch.ones(len(masks)))


def halves() -> torch.Tensor:
    """(4, 8): class 0 left, class 2 right, the last column ignored."""
    labels = torch.zeros(4, 8, dtype=torch.int32)
    labels[:, 4:] = 2
    labels[:, 7] = -1
    return labels


def masks_of(labels: torch.Tensor) -> torch.Tensor:
    return labels[None] == torch.tensor([k for k in labels.unique().tolist() if k >= 0])[:, None, None]


def test_iou_equals_counting_sets_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twostage.evaluation.recall.strips", lambda count, size: [(0, 4), (4, 5), (5, 11)])
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(5, 11, 13, generator=generator) > 0.6
    second = torch.rand(3, 11, 13, generator=generator) > 0.3
    first[2] = False
    some = torch.rand(11, 13, generator=generator) > 0.2
    for counted in (torch.ones(11, 13, dtype=torch.bool), some):

        def truth(begin: int, end: int, counted: torch.Tensor = counted) -> tuple[torch.Tensor, torch.Tensor]:
            return second[:, begin:end], counted[begin:end]

        iou = mask_iou(proposals_of(first), truth, (11, 13), 0.5)
        for n in range(5):
            for m in range(3):
                one, two = (
                    {tuple(p) for p in (mask & counted).nonzero().tolist()} for mask in (first[n], second[m])
                )
                assert iou[n, m].item() == pytest.approx(len(one & two) / len(one | two))


def test_two_empty_masks_have_iou_zero() -> None:
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    iou = mask_iou(proposals_of(nothing), lambda a, b: (nothing[:, a:b], ~nothing[0, a:b]), (2, 2), 0.5)
    assert iou.item() == 0


def test_classes_present_leave_out_the_ignored() -> None:
    assert classes_in(halves()).tolist() == [0, 2]


def test_smaller_masks_are_judged_as_if_resized_whole() -> None:
    generator = torch.Generator().manual_seed(3)
    small = torch.rand(6, 5, 7, generator=generator)
    labels = torch.randint(-1, 4, (23, 31), generator=generator)
    large = F.interpolate(small[None], size=(23, 31), mode="bilinear", align_corners=False)[0]
    for oracle in (oracle_scores, oracle_labels):
        expected, found = (oracle(proposals_of(masks), labels, 4) for masks in (large, small))
        torch.testing.assert_close(found, expected)
    whole, parts = ProposalRecall(4), ProposalRecall(4)
    whole.update(proposals_of(large), labels)
    parts.update(proposals_of(small), labels)
    np.testing.assert_allclose(parts.sums, whole.sums)


def test_oracle_scores_are_normalised_overlaps_with_the_strict_threshold() -> None:
    masks = torch.zeros(3, 4, 8)
    masks[0, :, :6] = 0.9  # 16 of class 0, 8 of class 2
    masks[1, :, :] = 0.5  # not above the threshold: empty
    masks[2, :, 7] = 1.0  # ignored pixels only
    scores = oracle_scores(proposals_of(masks), halves(), 4)
    left, right = 16 / 24, 8 / (24 + 12 - 8)
    assert scores.shape == (3, 4)
    torch.testing.assert_close(scores[0], torch.tensor([left, 0, right, 0]) / (left + right))
    assert not scores[1:].any()


def test_oracle_labels_are_the_arg_max_of_the_mixed_masks() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand(6, 9, 10, generator=generator)
    labels = torch.randint(-1, 5, (9, 10), generator=generator)
    masks[:, 0, 0] = 0
    scores = oracle_scores(proposals_of(masks), labels, 7)
    expected = torch.full((9, 10), -1)
    for y in range(9):
        for x in range(10):
            mixed = [sum(float(scores[n, k] * masks[n, y, x]) for n in range(6)) for k in range(7)]
            if max(mixed) > 0:
                expected[y, x] = int(np.argmax(mixed))
    found = oracle_labels(proposals_of(masks), labels, 7)
    assert found.dtype == torch.int32
    assert found[0, 0] == -1
    assert torch.equal(found.long(), expected)


def test_true_masks_reach_one_hundred() -> None:
    labels = halves()
    matrix = ConfusionMatrix(3)
    matrix.update(oracle_labels(proposals_of(masks_of(labels)), labels, 3), labels)
    assert compute(matrix, Vocabulary((("a",), ("b",), ("c",)))).overall.mIoU == 100.0


@pytest.mark.parametrize("case", ["no proposals", "all ignored"])
def test_nothing_to_label_is_void(case: str) -> None:
    masks = torch.ones(0 if case == "no proposals" else 2, 4, 8, dtype=torch.bool)
    labels = halves() if case == "no proposals" else torch.full((4, 8), -1)
    painted = oracle_labels(proposals_of(masks), labels, 3)
    assert painted.shape == (4, 8)
    assert (painted == -1).all()


def test_recall_by_hand_with_ignored_pixels_free() -> None:
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, :, :2] = True  # IoU 0.5 with class 0
    masks[1, :, 4:] = True  # class 2 exactly, and the ignored column
    recall = ProposalRecall(3)
    recall.update(proposals_of(masks), halves())
    result = recall.summary(Vocabulary((("a",), ("b",), ("c",)), (True, True, False)))
    assert (result["all"].masks, result["all"].recall_50, result["all"].recall_75) == (2, 100.0, 50.0)
    assert result["all"].mean_best_iou == pytest.approx(75.0)
    assert result["seen"].mean_best_iou == pytest.approx(50.0)
    assert result["unseen"].mean_best_iou == pytest.approx(100.0)


def test_recall_without_proposals_is_zero_and_without_masks_unknown() -> None:
    recall = ProposalRecall(3)
    assert recall.over().recall_50 is None
    recall.update(proposals_of(torch.zeros(0, 4, 8)), halves())
    assert (recall.over().masks, recall.over().recall_50, recall.over().mean_best_iou) == (2, 0.0, 0.0)
    recall.update(proposals_of(torch.zeros(0, 4, 8)), torch.full((4, 8), -1))
    assert recall.over().masks == 2


def test_instances_are_judged_one_by_one_and_groups_apart() -> None:
    labels = torch.zeros(4, 8, dtype=torch.int32)
    labels[:, 6:] = -1
    instances = torch.zeros(3, 4, 8, dtype=torch.bool)
    instances[0, :, :2], instances[1, :, 2:6], instances[2, :, 7] = True, True, True  # the last: ignored only
    masks = instances[:1].clone()
    recall = ProposalRecall(2)
    recall.update(proposals_of(masks), labels, instances, torch.tensor([1, 0, 0]))
    groups = {"things": np.array([False, True])}
    result = recall.summary(Vocabulary((("a",), ("b",))), groups)
    assert result["all"].masks == 2
    assert result["all"].recall_75 == 50.0
    assert result["things"].recall_75 == 100.0
    assert "seen" not in result


def test_merging_equals_one_collection() -> None:
    generator = torch.Generator().manual_seed(2)
    whole, left, right = ProposalRecall(4), ProposalRecall(4), ProposalRecall(4)
    for number in range(4):
        masks = torch.rand(5, 6, 6, generator=generator)
        labels = torch.randint(-1, 4, (6, 6), generator=generator)
        whole.update(proposals_of(masks), labels)
        (left if number % 2 else right).update(proposals_of(masks), labels)
    left.merge(right)
    np.testing.assert_allclose(left.sums, whole.sums)


def test_what_does_not_fit_is_refused() -> None:
    proposals = proposals_of(torch.ones(1, 4, 8))
    recall = ProposalRecall(3)
    with pytest.raises(LabelError, match=r"expected labels \(H, W\)"):
        oracle_scores(proposals, torch.zeros(0, 9, dtype=torch.int64), 3)
    with pytest.raises(LabelError, match=r"expected labels -1\.\.1"):
        oracle_labels(proposals, halves(), 2)
    with pytest.raises(LabelError, match="a class for each of 2 instances, got None"):
        recall.update(proposals, halves(), torch.ones(2, 4, 8, dtype=torch.bool))
    with pytest.raises(LabelError, match="instances \\(4, 9\\)"):
        recall.update(proposals, halves(), torch.ones(1, 4, 9, dtype=torch.bool), torch.tensor([0]))
    with pytest.raises(LabelError, match=r"instance classes must lie in 0\.\.2"):
        recall.update(proposals, halves(), torch.ones(1, 4, 8, dtype=torch.bool), torch.tensor([3]))
    with pytest.raises(LabelError, match="3 classes here, 4 there"):
        recall.merge(ProposalRecall(4))
