"""Evaluation against a loop by hand, the two oracles, and the same numbers from two processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_parts import Colours, Strips, bank
from torch import Tensor

from twostage.data.sample import Sample
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine import distributed
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.errors import TwostageError
from twostage.evaluation.runner import ORACLE_CLASSES, ORACLE_MASKS, evaluate, labels_at, true_masks
from twostage.proposals.oracle import OracleProposals
from twostage.segmenter import Segmenter, Words
from twostage.types import Evidence, Segmentation
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary

DATA = ShapesDataset("val", length=3)
WORDS = Words(DATA.vocabulary, bank(20))
PLAIN = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",)))


def system(size: int = 0, strips: int = 3) -> Segmenter:
    return Segmenter(PLAIN, Strips(Strips.Config(strips)), Colours(Colours.Config()), size=TestSize(size))


def slow_iou(pairs: list[tuple[Tensor, Tensor]]) -> list[float | None]:
    """Percent for each of the 20 classes, counted class by class; None where the truth has none."""
    found: list[float | None] = []
    for k in range(20):
        both = sum(int(((p == k) & (t == k)).sum()) for p, t in pairs)
        either = sum(int((((p == k) & (t >= 0)) | (t == k)).sum()) for p, t in pairs)
        found.append(100 * both / either if any((t == k).any() for _, t in pairs) else None)
    return found


@pytest.mark.parametrize("size", [0, 64])
def test_the_numbers_are_those_of_a_loop(size: int) -> None:
    segmenter = system(size)
    outcome = evaluate(segmenter, DATA, WORDS, {"mine": PLAIN})
    pairs, best = [], []
    for index in range(3):
        sample = DATA[index]
        assert sample.labels is not None
        pairs.append((segmenter.segment([sample.image], WORDS)[0].labels, sample.labels))
        width = sample.labels.shape[1]
        if size == 0:
            strip = torch.arange(width) * 3 // width
            for k in torch.unique(sample.labels):
                true = sample.labels == k
                masks = [(strip == s).expand_as(true) for s in range(3)]
                best.append(max(float((m & true).sum() / (m | true).sum()) for m in masks))
    got = [scores.IoU for scores in outcome.metrics["mine"].classes]
    for one, other in zip(got, slow_iou(pairs), strict=True):
        assert one == (None if other is None else pytest.approx(other))
    assert outcome.images == 3
    assert outcome.metrics["mine"].void_share == 0
    assert set(outcome.recall) == {"all", "seen", "unseen"}
    if size == 0:
        assert outcome.recall["all"].masks == len(best)
        assert outcome.recall["all"].mean_best_iou == pytest.approx(100 * np.mean(best))


def test_reports_follow_the_data_set_and_ensembles_the_words() -> None:
    """A student that was trained on every class is still judged on what the data set calls unseen."""
    everything = replace(DATA.vocabulary, seen=(True,) * 20)
    told: list[Vocabulary] = []

    class Listening(GeometricEnsemble):
        def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
            told.append(vocabulary)
            return super().merge(evidence, vocabulary)

    outcome = evaluate(system(), DATA, Words(everything, bank(20)), {"mine": Listening(PLAIN.config)})
    assert {vocabulary.seen for vocabulary in told} == {everything.seen}
    assert [one.seen for one in outcome.metrics["mine"].classes] == list(DATA.vocabulary.seen or ())
    assert outcome.metrics["mine"].hIoU is not None


def test_true_masks_are_the_ceiling() -> None:
    """With the truth as stage one, perfect names give every pixel back; strips cannot."""
    given = Segmenter(PLAIN, OracleProposals.tiny(), Colours(Colours.Config()), size=TestSize(0))
    systems = {"mine": PLAIN, ORACLE_CLASSES: PLAIN, ORACLE_MASKS: PLAIN}
    best = evaluate(given, DATA, WORDS, systems)
    assert best.metrics[ORACLE_CLASSES].overall.mIoU == 100
    assert best.recall["all"].recall_75 == 100
    assert best.metrics["mine"].as_dict() == best.metrics[ORACLE_MASKS].as_dict(), "the same masks either way"
    poor = evaluate(system(), DATA, WORDS, systems)
    assert poor.metrics[ORACLE_MASKS].as_dict() == best.metrics[ORACLE_MASKS].as_dict()
    ceiling, reached = poor.metrics[ORACLE_CLASSES].overall.pAcc, poor.metrics["mine"].overall.pAcc
    assert ceiling is not None
    assert reached is not None
    assert reached <= ceiling < 100


@pytest.mark.parametrize("size", [0, 64])
def test_a_stage_one_that_finds_nothing(size: int) -> None:
    outcome = evaluate(
        system(size, strips=0), DATA, WORDS, {"mine": PLAIN, ORACLE_CLASSES: PLAIN}, max_images=1
    )
    assert outcome.recall["all"].mean_best_iou == 0
    assert outcome.metrics[ORACLE_CLASSES].void_share == 100
    assert outcome.images == 1


def test_labels_at_another_size() -> None:
    labels = torch.arange(-1, 34, dtype=torch.int32).reshape(5, 7)
    small = labels_at(labels, (3, 4))
    rows = [int((row + 0.5) * 5 / 3) for row in range(3)]
    columns = [int((column + 0.5) * 7 / 4) for column in range(4)]
    assert torch.equal(small, labels[rows][:, columns])
    masks = true_masks(torch.tensor([[-1, 2], [0, 2]]), (2, 2))
    assert masks.masks.tolist() == [[[False, False], [True, False]], [[False, True], [False, True]]]
    assert len(true_masks(torch.full((2, 2), -1), (4, 4))) == 0


def test_every_photo_is_shown_with_all_its_maps() -> None:
    shown: list[tuple[str, list[str]]] = []

    def note(sample: Sample, maps: dict[str, Segmentation]) -> None:
        shown.append((sample.image_id, sorted(maps)))

    evaluate(system(), DATA, WORDS, {"b": PLAIN, "a": PLAIN}, 2, note)
    assert shown == [("val_000000", ["a", "b"]), ("val_000001", ["a", "b"])]


def test_dense_alone_has_no_recall(caplog: pytest.LogCaptureFixture) -> None:
    class Grey:
        def predict(self, images: Any, text: Any) -> Any:
            from twostage.types import DenseScores

            return [DenseScores(torch.eye(20)[0].reshape(20, 1, 1) * 9) for _ in images]

    ensemble = GeometricEnsemble(GeometricEnsemble.Config())
    with caplog.at_level("INFO", "twostage"):
        outcome = evaluate(
            Segmenter(ensemble, dense=Grey()), DATA, WORDS, {"x": ensemble}, 2, progress_seconds=-1
        )
    assert outcome.recall == {}
    assert "shapes_val: 1 of 2 photos" in caplog.text


def test_true_masks_are_named_with_the_prior_too() -> None:
    """The oracle of masks has no dense map of its own, and still knows what was said of the whole photo."""

    class Certain:
        def predict(self, images: Any, text: Any) -> Any:
            from twostage.types import DenseScores

            return [DenseScores(torch.zeros(20, 1, 1), image=99 * torch.eye(20)[3]) for _ in images]

    prior = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",), presence=1.0))
    shown: list[set[int]] = []
    evaluate(
        replace(system(), dense=Certain()),
        DATA,
        WORDS,
        {ORACLE_MASKS: prior, "mine": prior},
        1,
        lambda _, maps: shown.extend(set(made.labels.unique().tolist()) for made in maps.values()),
    )
    assert shown == [{3}, {3}]


class Lacking:
    """A photo without ground truth, or none at all."""

    name, vocabulary = "lacking", DATA.vocabulary

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return Sample(DATA[0].image, None, "one", "photos/one.jpg")


def test_what_cannot_be_evaluated() -> None:
    with pytest.raises(TwostageError, match="lacking has no photos to evaluate"):
        evaluate(system(), Lacking(0), WORDS, {"x": PLAIN})
    with pytest.raises(TwostageError, match=r"photos/one\.jpg has no ground truth"):
        evaluate(system(), Lacking(1), WORDS, {"x": PLAIN})


def numbers(count: int) -> dict[str, Any]:
    outcome = evaluate(system(), DATA, WORDS, {"mine": PLAIN, ORACLE_CLASSES: PLAIN}, count)
    recall = {name: (r.masks, r.recall_50, r.mean_best_iou) for name, r in outcome.recall.items()}
    rows = {name: metrics.as_dict() for name, metrics in outcome.metrics.items()}
    return {"rows": rows, "recall": recall, "images": outcome.images}


def share(folder: str) -> int:
    """One of two processes; the second has nothing to do where there is a single photo."""
    torch.set_num_threads(1)
    found = [numbers(3), numbers(1)]
    Path(folder, f"{distributed.rank()}.json").write_text(json.dumps(found))
    return 0


def test_two_processes_count_what_one_counts(tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{distributed._free_port()}"
    assert distributed._spawn(2, (share, 2, 2, 0, url, (str(tmp_path),))) == 0
    expected = json.loads(json.dumps([numbers(3), numbers(1)]))
    for rank in range(2):
        got = json.loads((tmp_path / f"{rank}.json").read_text())
        for one, other in zip(got, expected, strict=True):
            assert one["rows"] == other["rows"]
            assert one["images"] == other["images"]
            for group, values in other["recall"].items():
                assert one["recall"][group] == pytest.approx(values)
