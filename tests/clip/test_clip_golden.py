"""Tokens and text features against those recorded from the reference, with generated weights of the full
ViT-B/16 size."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch

from twostage.clip.model import ClipModel
from twostage.clip.text_bank import build_text_bank
from twostage.vocabulary import Vocabulary

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
PREFIX = "clip_adapter.clip_model."


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    weights = load_module("golden_weights", GOLDEN / "weights.py")
    sums = json.loads((GOLDEN / "weights_sha256.json").read_text(encoding="utf-8"))["tensors"]["r50"]
    plan = {name: item for name, item in weights.plan("r50").items() if name.startswith(PREFIX)}
    state = {name: weights.tensor(name, *item) for name, item in plan.items()}
    for name, digest in weights.digests(state)["tensors"].items():
        assert sums.get(name, digest) == digest, name
    module = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    module.load_state_dict({name.removeprefix(PREFIX): torch.from_numpy(v) for name, v in state.items()})
    return ClipModel(module, open_clip.get_tokenizer("ViT-B-16-quickgelu"), "ViT-B-16-quickgelu")


@pytest.mark.golden
def test_tokens(clip: ClipModel) -> None:
    record = json.loads((GOLDEN / "tokens.json").read_text(encoding="utf-8"))
    assert clip.context_length == record["context_length"]
    tokens = clip.tokenize(list(record["tokens"]))
    for row, expected in zip(tokens.tolist(), record["tokens"].values(), strict=True):
        assert row == expected + [0] * (77 - len(expected))


@pytest.mark.golden
@pytest.mark.slow
def test_text_features(clip: ClipModel) -> None:
    classes = json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))["classes"]
    recorded = np.load(GOLDEN / "text.npz")
    for templates, count in (("single", 6), ("vild", 6), ("imagenet", 2)):
        words = Vocabulary(tuple((name,) for name in classes[:count]))
        bank = build_text_bank(clip, words, templates)
        expected = torch.from_numpy(recorded[templates][:count])
        torch.testing.assert_close(bank.features, expected, rtol=0, atol=2e-5)
    no_object = torch.from_numpy(recorded["single"][6])
    weights = load_module("golden_weights", GOLDEN / "weights.py")
    name = "clip_adapter.non_object_embedding"
    made = torch.from_numpy(weights.tensor(name, *weights.plan("r50")[name]))
    bank = build_text_bank(clip, Vocabulary.from_words("dog"), "single", no_object=made)
    torch.testing.assert_close(bank.no_object, no_object, rtol=0, atol=2e-5)
    assert clip.logit_scale == pytest.approx(100.0, rel=1e-5)
