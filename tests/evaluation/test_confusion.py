"""The confusion matrix against a pixel-by-pixel count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twostage.data.errors import LabelError
from twostage.evaluation.confusion import ConfusionMatrix


def slow_counts(pred: np.ndarray, gt: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for said, true in zip(pred.ravel(), gt.ravel(), strict=True):
        counts[classes if said == -1 else said, classes if true == -1 else true] += 1
    return counts


@pytest.mark.parametrize(("classes", "size"), [(1, (1, 1)), (1, (5, 7)), (4, (9, 13)), (300, (21, 17))])
def test_counts_equal_a_loop_over_pixels(classes: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(classes)
    matrix = ConfusionMatrix(classes)
    expected = np.zeros((classes + 1, classes + 1), np.int64)
    for _ in range(3):
        pred, gt = (random.integers(-1, classes, size).astype(np.int32) for _ in range(2))
        matrix.update(pred, torch.from_numpy(gt))
        expected += slow_counts(pred, gt, classes)
    assert np.array_equal(matrix.to_numpy(), expected)
    assert matrix.to_numpy().dtype == np.int64


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_any_signed_integer_type_counts_alike(dtype: torch.dtype) -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, -1, 2]], dtype=dtype), torch.tensor([[0, 1, -1]], dtype=dtype))
    assert matrix.counts[0, 0] == matrix.counts[3, 1] == matrix.counts[2, 3] == 1
    assert matrix.counts.sum() == 3


def test_unsigned_bytes_count_too() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[2]], np.uint8), np.array([[1]], np.uint8))
    assert matrix.counts[2, 1] == 1


def test_an_image_without_pixels_changes_nothing() -> None:
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros((0, 4), dtype=torch.int64), torch.zeros((0, 4), dtype=torch.int64))
    assert matrix.counts.sum() == 0


def test_merging_equals_counting_everything_in_one() -> None:
    random = np.random.default_rng(0)
    maps = [random.integers(-1, 5, (2, 8, 8)) for _ in range(4)]
    whole, left, right = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    for number, (pred, gt) in enumerate(maps):
        whole.update(pred, gt)
        (left if number % 2 else right).update(pred, gt)
    before = left.to_numpy()
    assert np.array_equal((left + right).counts, whole.counts)
    assert np.array_equal(left.counts, before)
    left.merge(right)
    assert np.array_equal(left.counts, whole.counts)


def test_counts_survive_the_way_through_numpy() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.tensor([[0, 1], [1, -1]]), torch.tensor([[0, 0], [-1, 1]]))
    again = ConfusionMatrix.from_numpy(matrix.to_numpy())
    assert again.num_classes == 2
    assert np.array_equal(again.counts, matrix.counts)
    again.counts[0, 0] = 99
    assert matrix.counts[0, 0] == 1


@pytest.mark.parametrize(
    ("pred", "gt", "message"),
    [
        (torch.tensor([[3]]), torch.tensor([[0]]), "a.png: prediction: label 3"),
        (torch.tensor([[0]]), torch.tensor([[255]]), "a.png: ground truth: label 255"),
        (torch.tensor([[-2]]), torch.tensor([[0]]), "prediction: label -2"),
        (torch.tensor([[0.0]]), torch.tensor([[0]]), "expected integer labels, got torch.float32"),
        (torch.tensor([[True]]), torch.tensor([[0]]), "expected integer labels, got torch.bool"),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            torch.zeros(3, 2, dtype=torch.int64),
            "a.png: the prediction is",
        ),
    ],
)
def test_bad_label_maps_are_named_and_count_nothing(
    pred: torch.Tensor, gt: torch.Tensor, message: str
) -> None:
    matrix = ConfusionMatrix(3)
    with pytest.raises(LabelError, match=message):
        matrix.update(pred, gt, source="a.png")
    assert matrix.counts.sum() == 0


def test_impossible_matrices_are_refused() -> None:
    with pytest.raises(LabelError, match="at least one class"):
        ConfusionMatrix(0)
    with pytest.raises(LabelError, match="expected 2 classes, got 3"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
    for counts in (np.zeros((2, 3), int), np.zeros((1, 1), int), np.zeros((3, 3)), -np.ones((3, 3), int)):
        with pytest.raises(LabelError, match="from_numpy"):
            ConfusionMatrix.from_numpy(counts)
