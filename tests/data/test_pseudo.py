"""Pseudo labels against a loop over pixels, and the data set that is made of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twostage.data.errors import ImageReadError, LabelError
from twostage.data.image_io import read_label_png
from twostage.data.loader import TrainLoader
from twostage.data.pseudo import (
    FillRule,
    PseudoLabelled,
    evenly,
    fill,
    known_labels,
    label_path,
    labelled,
    read_labels,
    write_labels,
)
from twostage.data.sample import Sample
from twostage.data.transforms import TrainTransformConfig
from twostage.vocabulary import Vocabulary

SEEN = (True, False, True, False, False)
FLAGS = torch.tensor(SEEN)


def scene(seed: int) -> tuple[Tensor, Tensor]:
    """Labels (7, 9) of -1..4 and a class map (5, 7, 9), some of it zero."""
    chance = np.random.default_rng(seed)
    labels = torch.from_numpy(chance.integers(-1, 5, (7, 9)).astype(np.int32))
    class_map = torch.from_numpy(chance.random((5, 7, 9)).astype(np.float32) ** 3)
    class_map[:, 0, :3] = 0
    class_map[1:, 1, :2] = 0
    return labels, class_map


def slow(labels: Tensor, class_map: Tensor, rule: FillRule) -> Tensor:
    """The same as words say it, a pixel at a time."""
    out = torch.full_like(labels, -1)
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = int(labels[y, x])
            if label >= 0 and SEEN[label]:
                out[y, x] = label
                continue
            have = [float(value) for value in class_map[:, y, x]]
            may = [k for k in range(5) if not rule.prior or not SEEN[k]]
            winner = max(may, key=lambda k: have[k])
            if rule.score == "softmax":
                probability = math.exp(have[winner]) / sum(math.exp(value) for value in have)
            elif have[winner] == 0:
                continue
            else:
                probability = have[winner] / sum(
                    have[k] for k in (range(5) if rule.score == "share" else may)
                )
            beaten = rule.beaten == "void" and rule.prior and max(have[0], have[2]) > have[winner]
            if probability >= rule.reject_threshold and not beaten:
                out[y, x] = winner
    return out


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("beaten", ["keep", "void"])
@pytest.mark.parametrize(
    ("score", "threshold"),
    [("share", 0.0), ("share", 0.35), ("posterior", 0.6), ("softmax", 0.0), ("softmax", 0.25)],
)
def test_every_rule_is_that_of_the_loop(prior: bool, beaten: Any, score: Any, threshold: float) -> None:
    rule = FillRule(prior, score, threshold, beaten)
    for seed in range(3):
        labels, class_map = scene(seed)
        made = fill(known_labels(labels, FLAGS), class_map, FLAGS, rule)
        assert made.dtype == torch.int32
        assert torch.equal(made, slow(labels, class_map, rule))


def test_what_is_rejected_is_void_and_nothing_else() -> None:
    labels, class_map = scene(4)
    known = known_labels(labels, FLAGS)
    strict = fill(known, class_map, FLAGS, FillRule(reject_threshold=1.0))
    assert set(strict[known == -1].tolist()) <= {-1, 1, 3, 4}
    assert (strict[known == -1] == -1).float().mean() > 0.9, "hardly any pixel has but one class"
    assert torch.equal(strict[known >= 0], known[known >= 0])
    assert int(strict.max()) < 5


def test_unseen_ground_truth_is_not_known() -> None:
    labels = torch.tensor([[-1, 0, 1], [2, 3, 4]], dtype=torch.int32)
    assert known_labels(labels, FLAGS).tolist() == [[-1, 0, -1], [2, -1, -1]]


def test_without_ground_truth_seen_classes_compete() -> None:
    class_map = torch.zeros(5, 1, 2)
    class_map[2, 0, 0], class_map[1, 0, 0], class_map[4, 0, 1] = 0.9, 0.5, 0.1
    assert fill(None, class_map, FLAGS, FillRule()).tolist() == [[2, 4]]
    assert fill(torch.full((1, 2), -1, dtype=torch.int32), class_map, FLAGS, FillRule()).tolist() == [[1, 4]]


def test_all_is_known() -> None:
    known = torch.tensor([[0, 2]], dtype=torch.int32)
    assert torch.equal(fill(known, torch.rand(5, 1, 2), FLAGS, FillRule()), known)


def test_what_cannot_be_filled() -> None:
    known = torch.full((2, 2), -1, dtype=torch.int32)
    with pytest.raises(LabelError, match=r"expected a class map of 5 classes.*got \(4, 2, 2\)"):
        fill(known, torch.rand(4, 2, 2), FLAGS, FillRule())
    with pytest.raises(LabelError, match=r"for labels of \(2, 2\)"):
        fill(known, torch.rand(5, 2, 3), FLAGS, FillRule())
    for bad in (-0.1, math.nan):
        with pytest.raises(LabelError, match="negative or non-finite"):
            fill(known, torch.full((5, 2, 2), bad), FLAGS, FillRule())
    logits = torch.full((5, 2, 2), -1.0)
    logits[3] = 0.0
    assert (fill(known, logits, FLAGS, FillRule(score="softmax")) == 3).all()


@pytest.mark.parametrize(("classes", "void"), [(5, 255), (255, 255), (256, 65535), (847, 65535)])
def test_files_keep_labels_and_void(tmp_path: Path, classes: int, void: int) -> None:
    labels = torch.tensor([[-1, 0], [classes - 1, 1]], dtype=torch.int32)
    path = label_path(tmp_path, 12, "scene_12")
    write_labels(path, labels, classes)
    assert torch.equal(read_labels(path, classes), labels)
    assert int(read_label_png(path)[0, 0]) == void
    assert labelled(tmp_path) == {12}


def test_a_file_of_other_classes(tmp_path: Path) -> None:
    path = label_path(tmp_path, 0, "x")
    write_labels(path, torch.tensor([[4, -1]], dtype=torch.int32), 5)
    with pytest.raises(LabelError, match=r"0000000_x\.png: value 4 stands for no class, there are 4\."):
        read_labels(path, 4)


class Plain:
    """Four grey photos of 6 x 8 pixels whose ground truth is all unseen."""

    name = "plain"
    vocabulary = Vocabulary.from_words("a, b, c, d, e")

    def __init__(self) -> None:
        self.vocabulary = replace(self.vocabulary, seen=SEEN)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        image = torch.full((3, 6, 8), 10 * index, dtype=torch.uint8)
        return Sample(image, torch.full((6, 8), 1, dtype=torch.int32), f"photo_{index}")


def test_the_data_set_gives_the_labels_of_the_files(tmp_path: Path) -> None:
    stored = torch.full((6, 8), 3, dtype=torch.int32)
    stored[:3] = -1
    write_labels(label_path(tmp_path, 2, "photo_2"), stored, 5)
    data = PseudoLabelled(Plain(), tmp_path, [2])
    sample, truth = data.with_truth(0)
    assert (len(data), sample.image_id, int(sample.image[0, 0, 0])) == (1, "photo_2", 20)
    assert sample.labels is not None
    assert torch.equal(sample.labels, stored)
    assert truth is not None
    assert (truth == 1).all()
    assert data.vocabulary.names == Plain.vocabulary.names
    assert data.vocabulary.seen == (True,) * 5
    with pytest.raises(IndexError, match="1 samples, there is no number 1"):
        data[1]
    with pytest.raises(ImageReadError, match=r"0000003_photo_3\.png: there is no such file"):
        PseudoLabelled(Plain(), tmp_path, [3])[0]
    write_labels(label_path(tmp_path, 1, "photo_1"), stored[:4], 5)
    with pytest.raises(LabelError, match=r"expected the size of the image \(6, 8\), got \(4, 8\)"):
        PseudoLabelled(Plain(), tmp_path, [1])[0]


def test_training_takes_void_pixels_and_photos_without_any_label(tmp_path: Path) -> None:
    empty, half = torch.full((6, 8), -1, dtype=torch.int32), torch.full((6, 8), 4, dtype=torch.int32)
    half[:, :4] = -1
    for index, labels in enumerate((empty, half)):
        write_labels(label_path(tmp_path, index, f"photo_{index}"), labels, 5)
    crops = TrainTransformConfig((6,), 100, (6, 8), flip=0.0, colour=False)
    batch = next(iter(TrainLoader(PseudoLabelled(Plain(), tmp_path, [0, 1]), 2, 0, crops)))
    found = {name: place for place, name in enumerate(batch.image_ids)}
    assert batch.masks[found["photo_0"]].shape == (0, 6, 8)
    assert batch.classes[found["photo_1"]].tolist() == [4], "classes keep their numbers: all are trained"
    assert int(batch.masks[found["photo_1"]].sum()) == 24
    assert (batch.labels[found["photo_0"]] == -1).all()


def test_evenly() -> None:
    assert evenly(10, 0) == evenly(10, 10) == evenly(10, 99) == list(range(10))
    assert evenly(10, 3) == [0, 3, 6]
    assert len(set(evenly(1000, 333))) == 333
