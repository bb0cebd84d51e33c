"""The miniature CLIP as it ships: loaded by plain open_clip, small, good at the words of the drawn world."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors import safe_open

from twostage.classifiers.crops import CropClassifier
from twostage.clip import mini
from twostage.clip.model import ClipModel
from twostage.clip.text_bank import build_text_bank
from twostage.data.shapes.classes import CLASSES, UNSEEN
from twostage.data.shapes.dataset import ShapesDataset
from twostage.proposals.oracle import OracleProposals

SCENES = 60
CLIPS_OWN_MERGES = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
per_model = pytest.mark.parametrize("name", mini.NAMES)


def shipped(name: str) -> Path:
    path = mini.weights_path(name)
    assert path.is_file(), (
        f"{path.name} is missing beside twostage/clip/mini: train it with tools/train_mini_clip.py"
    )
    return path


@cache
def tokenizer(name: str) -> open_clip.tokenizer.SimpleTokenizer:
    open_clip.add_model_config(mini.model_config(name))
    return open_clip.get_tokenizer(name)


@per_model
def test_the_tokenizer_is_the_small_one(name: str) -> None:
    small = tokenizer(name)
    assert small.vocab_size == mini.vocabulary_size() == 782
    assert open_clip.get_model_config(name)["text_cfg"]["vocab_size"] == 782
    rows = small([f"a photo of a {word}." for word in CLASSES])
    assert rows.shape == (20, 24)
    assert int(rows.max()) == 781  # end of text; start is 780
    assert rows[:, 0].tolist() == [780] * 20
    assert all(781 in row for row in rows.tolist()), "nothing is cut off"


@per_model
@pytest.mark.parametrize("word", sorted({part for name in CLASSES for part in name.split()}))
def test_words_are_split_as_clip_splits_them(name: str, word: str) -> None:
    small, clips = tokenizer(name), open_clip.tokenizer.SimpleTokenizer(bpe_path=str(CLIPS_OWN_MERGES))
    pieces = [small.decoder[token] for token in small.encode(f"a photo of a {word}.")]
    assert pieces == [clips.decoder[token] for token in clips.encode(f"a photo of a {word}.")]
    assert "".join(pieces[4:-1]) == f"{word}</w>"


@per_model
def test_any_other_text_can_be_written_too(name: str) -> None:
    for text in ("zebra", "straße 猫", "12 monkeys!"):
        back = tokenizer(name).decode(tokenizer(name).encode(text))
        assert back.replace(" ", "") == text.replace(" ", "")


def test_a_config_is_written_once_a_run() -> None:
    first = mini.model_config("twostage-mini-rn")
    assert first == mini.model_config("twostage-mini-rn")
    assert first.stem == "twostage-mini-rn"
    with pytest.raises(KeyError, match="nobody"):
        mini.model_config("nobody")


def test_the_config_is_gone_when_the_process_ends() -> None:
    code = (
        "from twostage.clip import mini; path = mini.model_config(mini.NAMES[0]); print(path, path.is_file())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    path, was_there = told.rsplit(maxsplit=1)
    assert was_there == "True"
    assert not Path(path).parent.exists()


@per_model
def test_plain_open_clip_loads_it(name: str) -> None:
    path = shipped(name)
    open_clip.add_model_config(mini.model_config(name))
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(path))
    assert model.token_embedding.weight.shape == (782, 128)
    stored: dict[str, torch.Tensor] = {}
    with safe_open(path, "pt") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a mapping
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and key in stored:
            assert torch.equal(tensor, stored[key].float()), f"{key} was not loaded"
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    size = model.visual.image_size
    side = size if isinstance(size, int) else size[0]
    assert re.search(rf"size=\(?{side}", str(preprocess))


def test_both_are_a_small_download() -> None:
    sizes = {name: shipped(name).stat().st_size for name in mini.NAMES}
    assert sum(sizes.values()) < 8_000_000, sizes


@cache
def accuracies(name: str) -> tuple[float, float]:
    """Share of regions that get their own of all twenty words: of all regions, of those of unseen words."""
    shipped(name)
    clip = ClipModel.load(name)
    dataset = ShapesDataset("test", length=SCENES)
    text = build_text_bank(clip, dataset.vocabulary, "single")
    classifier, oracle = CropClassifier(CropClassifier.Config(), clip), OracleProposals.tiny()
    hits: list[bool] = []
    unseen: list[bool] = []
    for index in range(SCENES):
        sample = dataset[index]
        assert sample.labels is not None
        masks = oracle.propose_from_labels(sample.labels)
        present = torch.unique(sample.labels).tolist()
        [scores] = classifier.classify([sample.image], [masks], text)
        for label, named in zip(present, scores.logits.argmax(dim=1).tolist(), strict=True):
            hits.append(label == named)
            if CLASSES[label] in UNSEEN:
                unseen.append(label == named)
    assert len(unseen) > 30
    return sum(hits) / len(hits), sum(unseen) / len(unseen)


@per_model
def test_it_knows_its_words(name: str) -> None:
    overall, unseen = accuracies(name)
    assert overall >= 0.8, f"{overall:.3f} of all regions"
    assert unseen >= 0.8, f"{unseen:.3f} of the regions of unseen words"


def test_the_better_one_knows_them_well() -> None:
    best = max((accuracies(name) for name in mini.NAMES), key=lambda pair: min(pair))
    assert min(best) >= 0.9, f"{best[0]:.3f} of all regions, {best[1]:.3f} of those of unseen words"
