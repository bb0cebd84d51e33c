"""A ready system: loaded once, asked often, with words in any form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_parts import write_photo, write_system

import twostage
from twostage.clip.model import ClipModel
from twostage.config import ConfigError
from twostage.data.errors import ImageReadError
from twostage.data.image_io import read_image
from twostage.errors import TwostageError
from twostage.predict import System, as_vocabulary, load
from twostage.vocabulary import Vocabulary, VocabularyError
from twostage.zoo import ZooError


@pytest.fixture
def system(tmp_path: Path) -> System:
    return load(str(write_system(tmp_path)))


def test_a_file_and_its_pixels_give_the_same(tmp_path: Path, system: System) -> None:
    photo = write_photo(tmp_path / "a.png", (20, 31))
    result = system.segment(photo, "cat, sofa|couch, other")
    assert result.labels.shape == (20, 31)
    assert result.labels.dtype == torch.int32
    assert set(result.labels.unique().tolist()) <= {0, 1, 2}
    again = system.segment(read_image(photo), ["cat", "sofa|couch", "other"])
    assert torch.equal(result.labels, again.labels)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 40), (37, 2)])
def test_odd_sizes(tmp_path: Path, system: System, size_hw: tuple[int, int]) -> None:
    photo = write_photo(tmp_path / "a.png", size_hw)
    assert system.segment(str(photo), "one").labels.shape == size_hw


def test_words_are_encoded_once(tmp_path: Path, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = ClipModel.encode_text

    def counting(self: ClipModel, texts: list[str], chunk: int = 256) -> torch.Tensor:
        asked.append(len(texts))
        return real(self, texts, chunk)

    monkeypatch.setattr(ClipModel, "encode_text", counting)
    first = system.words("cat, dog")
    assert system.words(["cat", "dog"]) is first
    assert system.words(first.vocabulary) is first
    assert asked == [2]
    other_ids = Vocabulary(first.vocabulary.names, None, (7, 9))
    assert system.words(other_ids).vocabulary.label_ids == (7, 9), "the same words may have other ids"


def test_what_cannot_be_segmented(tmp_path: Path, system: System) -> None:
    with pytest.raises(ImageReadError, match=r"nowhere\.jpg"):
        system.segment(tmp_path / "nowhere.jpg", "cat")
    for wrong in (
        torch.zeros(3, 4, 5),
        torch.zeros(4, 5, 3, dtype=torch.uint8),
        torch.zeros(4, 5, dtype=torch.uint8),
    ):
        with pytest.raises(TwostageError, match=r"segment: expected RGB uint8 \(3, H, W\), got"):
            system.segment(wrong, "cat")
    with pytest.raises(VocabularyError, match="The class list is empty"):
        system.segment(torch.zeros(3, 4, 5, dtype=torch.uint8), "")


def test_classes_in_every_form(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("cat|kitty\ndog\n")
    expected = Vocabulary((("cat", "kitty"), ("dog",)))
    for given in ("cat|kitty, dog", ["cat|kitty", "dog"], str(words), expected):
        assert as_vocabulary(given) == expected
    with pytest.raises(VocabularyError, match="Cannot read the class list"):
        as_vocabulary("nowhere.txt")
    assert as_vocabulary("a.txt, b.txt").shown == ("a.txt", "b.txt")


def test_load_by_name_file_and_options(tmp_path: Path) -> None:
    path = write_system(tmp_path)
    loaded = twostage.load(str(path), ["PROPOSALS.OPTIONS.COUNT=5"])
    photo = torch.zeros(3, 10, 10, dtype=torch.uint8)
    assert loaded.segment(photo, "a").info["proposals"] == 5
    assert loaded.config.proposals.options == {"count": 5}
    with pytest.raises(ConfigError, match="PROPOSALS"):
        load(str(path), ["PROPOSAL.NAME=x"])
    with pytest.raises(ZooError, match="Did you mean 'sam-vit-b16'"):
        load("sam-vit-b61")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(str(tmp_path / "nowhere.yaml"))
