"""Masks reach a photo by its name: in `segment`, with several views, and in evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import write_photo, write_system

from twostage.cli import main
from twostage.data.image_io import read_image
from twostage.data.sample import Sample
from twostage.evaluation import runner
from twostage.predict import System, load
from twostage.proposals import _cache_files as files
from twostage.proposals._cache_files import CacheError
from twostage.proposals.cached import CachedConfig, CachedProposals
from twostage.segmenter import Segmenter
from twostage.types import Evidence, Proposals, Segmentation
from twostage.vocabulary import Vocabulary

HALVES = np.repeat(np.array([[1, 2]], np.uint8), 12, axis=1).repeat(16, axis=0)
"""(16, 24): region 1 on the left, 2 on the right."""


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    folder = tmp_path / "regions"
    folder.mkdir()
    Image.fromarray(HALVES).save(folder / "dog.png")
    return folder


def system(tmp_path: Path, regions: Path, *more: str) -> System:
    chosen = ["PROPOSALS.NAME=cached", f"PROPOSALS.OPTIONS.PATH={regions}"]
    return load(str(write_system(tmp_path)), [*chosen, *more])


def test_a_file_is_found_by_its_stem(tmp_path: Path, regions: Path) -> None:
    photo = write_photo(tmp_path / "photos" / "dog.jpg", (32, 48))
    made = system(tmp_path, regions)
    by_file = made.segment(photo, "a, b, c")
    assert by_file.info["proposals"] == 2
    assert len(by_file.labels[:, :24].unique()) == 1, "one mask, one word"
    by_name = made.segment(read_image(photo), "a, b, c", image_id="dog")
    assert torch.equal(by_name.labels, by_file.labels)
    with pytest.raises(CacheError, match=r"no proposals for this image of 48 x 32 pixels.*give its name"):
        made.segment(read_image(photo), "a, b, c")
    with pytest.raises(CacheError, match=r"no proposals for image 'dogs'\. Did you mean 'dog'"):
        made.segment(read_image(photo), "a, b, c", image_id="dogs")


def test_from_the_command_line(tmp_path: Path, regions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_photo(tmp_path / "photos" / "dog.jpg", (32, 48))
    strange = write_photo(tmp_path / "photos" / "cat.jpg", (32, 48))
    words = ["--model", str(write_system(tmp_path)), "--classes", "a, b", "-o", str(tmp_path / "out")]
    options = ["--set", "PROPOSALS.NAME=cached", f"PROPOSALS.OPTIONS.PATH={regions}"]
    assert main(["segment", str(photo), *words, *options]) == 0
    assert main(["segment", str(photo), str(strange), *words, *options]) == 1
    assert "no proposals for image 'cat'" in capsys.readouterr().err


def test_pixels_come_before_names(tmp_path: Path) -> None:
    """A renamed photo keeps its own masks, even where another's go by its new name."""
    image = read_image(write_photo(tmp_path / "a.png", (6, 8)))
    for name, count, digest in (("first", 1, files.digest(image)), ("second", 2, "")):
        masks = torch.ones(count, 6, 8, dtype=torch.bool)
        files.write_npz(tmp_path / f"{name}.npz", Proposals(masks, torch.ones(count)), digest)
    store = CachedProposals(CachedConfig(str(tmp_path)))
    assert store.find(image, "second") == "first"
    assert store.find(image.flip(-1), "second") == "second"
    assert store.find(image.flip(-1), "third") == "third"


def test_masks_follow_every_view(tmp_path: Path, regions: Path) -> None:
    """Mirrored and at several sizes the left mask is the left one: labels stay constant on each half."""
    photo = write_photo(tmp_path / "dog.jpg", (32, 48))
    views = "TEST.AUG.ENABLED=true", "TEST.AUG.MIN_SIZES=[16, 32]", "TEST.AUG.FLIP=true"
    labels = system(tmp_path, regions, *views).segment(photo, "a, b, c").labels
    for half in (labels[:, :22], labels[:, 26:]):
        assert len(half.unique()) == 1
    window = system(tmp_path, regions, "TEST.WINDOW.SIZE=[16]").segment(photo, "a, b, c").labels
    assert len(window[:, :8].unique()) == len(window[:, -8:].unique()) == 1


class First:
    """An ensemble that labels with the first mask that covers a pixel."""

    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        assert evidence.proposals is not None
        masks = evidence.proposals.masks
        labels = torch.full(evidence.size_hw, -1, dtype=torch.int32)
        for number in reversed(range(len(masks))):
            labels[masks[number]] = number
        return Segmentation(labels)


class OnePhoto:
    """A data set of one photo called dog, whose truth is HALVES."""

    name = "one"
    vocabulary = Vocabulary.from_words("left, right")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        labels = torch.from_numpy(HALVES.astype(np.int32) - 1)
        return Sample(torch.zeros(3, 16, 24, dtype=torch.uint8), labels, "dog", "dog.jpg")


def test_an_evaluation_asks_by_name(tmp_path: Path, regions: Path) -> None:
    made = system(tmp_path, regions)
    segmenter: Segmenter = made._segmenter
    words = made.words(OnePhoto.vocabulary)
    outcome = runner.evaluate(segmenter, OnePhoto(), words, {"first": First()})
    assert outcome.metrics["first"].as_dict()["mIoU"] == pytest.approx(100)
    assert outcome.recall["all"].recall_75 == 100
