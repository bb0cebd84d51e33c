"""The metrics against the original's recorded numbers, a slow version over pixel sets, cases by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from twostage.data.errors import LabelError
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.metrics import Metrics, compute, harmonic_mean
from twostage.vocabulary import Vocabulary

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "metrics.json").read_text())["cases"]


def block_labels(name: str, height: int, width: int, values: list[int]) -> np.ndarray:
    """(height, width) int64 drawn from `values` in 4 x 4 blocks, the same on every machine."""
    shape = (-(-height // 4), -(-width // 4))
    count = shape[0] * shape[1]
    seed = int.from_bytes(hashlib.sha256(f"|labels/{name}".encode()).digest(), "big")
    raw = np.random.PCG64(seed).random_raw((count + 1) // 2).astype("<u8").view("<u4")[:count] >> 8
    coarse = np.kron((raw.astype(np.int64) % len(values)).reshape(shape), np.ones((4, 4), np.int64))
    return np.array(values)[coarse[:height, :width]]


def digest(labels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest()


def words(count: int, seen: tuple[bool, ...] | None = None) -> Vocabulary:
    return Vocabulary(tuple((f"c{k}",) for k in range(count)), seen)


def counted(pred: list, gt: list, classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(classes)
    matrix.update(torch.tensor(pred), torch.tensor(gt))
    return matrix


@pytest.mark.golden
@pytest.mark.parametrize("case", GOLDEN, ids=[case["name"] for case in GOLDEN])
def test_equals_the_recorded_numbers_of_the_original(case: dict) -> None:
    name, classes = case["name"], case["classes"]
    matrix = ConfusionMatrix(classes)
    for i, (height, width) in enumerate(case["sizes"]):
        gt = block_labels(f"{name}/gt/{i}", height, width, case["gt_values"])
        drawn = block_labels(f"{name}/pred/{i}", height, width, case["pred_values"])
        take = block_labels(f"{name}/take/{i}", height, width, [0, 0, 0, 1]) == 1
        pred = np.where(take | (gt == 255), drawn, gt)
        assert digest(gt) == case["gt_sha256"][i]
        assert digest(pred) == case["pred_sha256"][i]
        matrix.update(pred, np.where(gt == 255, -1, gt))
    assert matrix.to_numpy().tolist() == case["confusion_rows_pred_columns_gt"]
    results = compute(matrix, words(classes), case.get("evaluation_set"))
    ours = named_as_recorded(results)
    assert ours.keys() == case["results"].keys()
    for key, value in case["results"].items():
        assert ours[key] == (None if value is None else pytest.approx(value, rel=1e-9)), key


def named_as_recorded(results: Metrics) -> dict[str, float | None]:
    overall = results.overall
    out = {"mIoU": overall.mIoU, "fwIoU": overall.fwIoU, "mACC": overall.mAcc, "pACC": overall.pAcc}
    out |= {f"IoU-{scores.name}": scores.IoU for scores in results.classes}
    out |= {f"ACC-{scores.name}": scores.Acc for scores in results.classes}
    for name, split in results.subsets.items():
        out |= {
            f"mIoU-{name}": split.inside.mIoU,
            f"pAcc-{name}": split.inside.pAcc,
            f"hIoU-{name}": split.hIoU,
        }
        out |= {f"mIoU-un{name}": split.outside.mIoU, f"pAcc-un{name}": split.outside.pAcc}
    return out


def slow_set(pred: np.ndarray, gt: np.ndarray, members: list[int]) -> dict[str, float | None]:
    """The definitions over sets of pixels, class by class."""
    judged = gt != -1
    ious, accs, named, right, total, weighted = [], [], 0, 0, 0, 0.0
    for k in members:
        truth, said = (gt == k), (pred == k) & judged
        named += bool(truth.any() or said.any())
        if truth.any():
            hit = int((truth & said).sum())
            ious.append(hit / int((truth | said).sum()))
            accs.append(hit / int(truth.sum()))
            right, total, weighted = (
                right + hit,
                total + int(truth.sum()),
                weighted + ious[-1] * int(truth.sum()),
            )
    return {
        "mIoU": 100 * sum(ious) / named if named else None,
        "mIoU_skip": 100 * sum(ious) / len(ious) if ious else None,
        "mAcc": 100 * sum(accs) / len(accs) if accs else None,
        "pAcc": 100 * right / total if total else None,
        "fwIoU": 100 * weighted / total if total else None,
    }


@pytest.mark.parametrize("seed", range(6))
def test_equals_a_slow_version_with_void_ignored_and_absent_classes(seed: int) -> None:
    random = np.random.default_rng(seed)
    gt = random.choice([-1, 0, 1, 2, 4], (14, 19))
    pred = np.where(random.random(gt.shape) < 0.5, gt, random.choice([-1, 0, 2, 3, 4, 6], gt.shape))
    seen = (True, True, False, True, False, True, False)
    results = compute(counted(pred.tolist(), gt.tolist(), 7), words(7, seen))
    assert results.seen is not None
    for scores, members in (
        (results.overall, list(range(7))),
        (results.seen.inside, [0, 1, 3, 5]),
        (results.seen.outside, [2, 4, 6]),
    ):
        for key, value in slow_set(pred, gt, members).items():
            assert getattr(scores, key) == pytest.approx(value, rel=1e-12), key
    assert results.void_share == pytest.approx(100 * ((pred == -1) & (gt != -1)).sum() / (gt != -1).sum())


def test_the_two_conventions_differ_by_a_class_predicted_but_absent() -> None:
    results = compute(counted([[0, 0, 1, 1]], [[0, 0, 0, 0]], 3), words(3))
    assert results.overall.mIoU == 25.0
    assert results.overall.mIoU_skip == 50.0
    assert results.classes[1].IoU is None
    assert results.classes[1].predicted_pixels == 2


def test_predictions_on_ignored_pixels_do_not_count() -> None:
    results = compute(counted([[0, 1, 2]], [[0, 1, -1]], 3), words(3))
    assert results.overall.mIoU == results.overall.pAcc == 100.0


def test_void_predictions_stay_in_the_union() -> None:
    results = compute(counted([[0, -1, -1, -1]], [[0, 0, 0, 0]], 2), words(2))
    assert results.classes[0].IoU == results.overall.mIoU == results.overall.pAcc == 25.0
    assert results.void_share == 75.0


def test_everything_ignored_gives_no_numbers() -> None:
    row = compute(counted([[0, 1]], [[-1, -1]], 2), words(2, (True, False))).as_dict()
    numbers = {key: value for key, value in row.items() if key not in ("subsets", "classes")}
    assert len(numbers) == 14
    assert set(numbers.values()) == {None}


@pytest.mark.parametrize(
    ("pred", "seen", "expected"),
    [
        ([[0, 1]], (True, False), (100.0, 100.0, 100.0)),
        ([[0, 0]], (True, False), (50.0, 0.0, 0.0)),
        ([[0, 1]], (True, True), (100.0, None, None)),
        ([[0, 1]], (False, False), (None, 100.0, None)),
        ([[0, 1]], None, (None, None, None)),
    ],
)
def test_seen_unseen_and_their_harmonic_mean(
    pred: list, seen: tuple[bool, ...] | None, expected: tuple[float | None, ...]
) -> None:
    row = compute(counted(pred, [[0, 1]], 2), words(2, seen)).as_dict()
    assert (row["seen"], row["unseen"], row["hIoU"]) == expected


def test_the_row_is_plain_data_with_one_entry_a_class() -> None:
    row = compute(counted([[0, 1]], [[0, 0]], 2), words(2, (True, False)), {"base": [0]}).as_dict()
    assert json.loads(json.dumps(row)) == row
    assert row["classes"][0] == {
        "name": "c0", "seen": True, "IoU": 50.0, "Acc": 50.0, "gt_pixels": 2, "predicted_pixels": 1,
    }  # fmt: skip
    assert row["subsets"]["base"]["inside"]["mIoU"] == 50.0
    assert row["subsets"]["base"]["outside"]["mIoU"] == 0.0


def test_mismatched_vocabulary_and_wild_subsets_are_refused() -> None:
    matrix = counted([[0]], [[0]], 2)
    with pytest.raises(LabelError, match="has 2 classes and the vocabulary 3"):
        compute(matrix, words(3))
    with pytest.raises(LabelError, match="Subset 'base': position 2"):
        compute(matrix, words(2), {"base": [0, 2]})


def test_harmonic_mean_by_hand() -> None:
    assert harmonic_mean(30.0, 60.0) == pytest.approx(40.0)
    assert harmonic_mean(0.0, 60.0) == 0.0
    assert harmonic_mean(None, 60.0) is None
