"""Real photos and masks: set TWOSTAGE_TEST_DATA to a folder with coco100/ (a folder data set) and photos/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from twostage.data.check import check_dataset
from twostage.data.folder import FolderDataset
from twostage.data.image_io import read_image

ROOT = os.environ.get("TWOSTAGE_TEST_DATA", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="TWOSTAGE_TEST_DATA is not set: it names the folder of real photos"),
]


def test_every_photo_and_mask_is_sound() -> None:
    report = check_dataset(Path(ROOT) / "coco100", workers=2)
    assert report.ok, report.format()
    assert [(s.name, s.num_images, s.num_counted) for s in report.splits] == [
        ("train2017", 100, 100),
        ("val2017", 50, 50),
    ]
    person = report.class_names.index("person")
    for split in report.splits:
        labelled = sum(split.pixels)
        assert split.images[person] == max(split.images)  # the commonest class of COCO
        assert 0.03 < split.pixels[person] / labelled < 0.3
        assert split.ignored < 0.25 * (labelled + split.ignored)
        assert sum(images > 0 for images in split.images) > 80


def test_samples_fit_their_class_list() -> None:
    dataset = FolderDataset(Path(ROOT) / "coco100", "val2017")
    assert len(dataset.vocabulary) == 129
    assert len(dataset.vocabulary.seen_only()) == 129 - 12
    assert dataset.vocabulary.label_ids[dataset.vocabulary.index("stop sign")] == 13
    sample = dataset[0]
    assert sample.labels is not None
    assert sample.image.shape[1:] == sample.labels.shape
    assert sample.image.float().std() > 10
    assert -1 <= int(sample.labels.min()) <= int(sample.labels.max()) < 129


def test_single_photos() -> None:
    paths = sorted((Path(ROOT) / "photos").iterdir())
    assert len(paths) == 7
    for path in paths:
        image = read_image(path)
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert min(image.shape[1:]) > 100
