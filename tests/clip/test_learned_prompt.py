"""Learned prompts: the sequence, gradients, features recorded from the original, files, what is refused."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.checks import ClipError
from twostage.clip.learned_prompt import LearnedPrompt, LearnedPromptError, learned_text_bank
from twostage.clip.model import ClipModel
from twostage.clip.prompt_file import PromptFacts, load_prompt, save_prompt
from twostage.clip.text_bank import build_text_bank
from twostage.vocabulary import Vocabulary

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLIP_PREFIX = "clip_adapter.clip_model."


def by_hand(clip: ClipModel, vectors: Tensor, num_prefix: int, name: str) -> Tensor:
    """(D,) of one name: the whole padded context through open_clip's own parts."""
    module: Any = clip._module
    plain = clip.tokenize([name])[0].tolist()
    start, stop, end = clip.tokenize(["."])[0, :3].tolist()
    words = plain[1 : plain.index(end)]
    table = module.token_embedding.weight
    rows = [table[start], *vectors[:num_prefix], *(table[i] for i in words), *vectors[num_prefix:]]
    rows += [table[stop], table[end]]
    last = len(rows) - 1
    rows += [table[0]] * (clip.context_length - len(rows))
    x = torch.stack(rows)[None] + module.positional_embedding
    x = module.ln_final(module.transformer(x, attn_mask=module.attn_mask))
    return F.normalize(x[0, last] @ module.text_projection, dim=0)


@pytest.mark.parametrize(("prefix", "suffix"), [(16, 0), (3, 2), (0, 4)])
def test_checklist_18_start_vectors_name_full_stop_end(tiny_vit: ClipModel, prefix: int, suffix: int) -> None:
    prompt = LearnedPrompt.random(prefix, suffix, tiny_vit.text_tower.width, seed=3)
    names = ["dog", "traffic light", "road, route", "a very long name of a thing"]
    for chunk in (256, 3, 1):
        made = prompt.encode(tiny_vit, names, chunk=chunk)
        for row, name in zip(made, names, strict=True):
            expected = by_hand(tiny_vit, prompt.vectors, prefix, name)
            torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_vectors_that_are_tokens_give_the_template(tiny_vit: ClipModel) -> None:
    words = Vocabulary.from_words("dog, traffic light")
    length = int(tiny_vit.tokenize(["a photo of a"])[0].argmax()) - 1
    prompt = LearnedPrompt.random(length, 0, tiny_vit.text_tower.width, seed=0)
    prompt.start_with(tiny_vit, "a photo of a")
    made = learned_text_bank(tiny_vit, words, prompt)
    expected = build_text_bank(tiny_vit, words, ["a photo of a {}."])
    torch.testing.assert_close(made.features, expected.features, rtol=1e-5, atol=1e-6)


def test_fewer_words_stand_right_before_the_name(tiny_vit: ClipModel) -> None:
    prompt = LearnedPrompt.random(4, 1, tiny_vit.text_tower.width, seed=0)
    before = prompt.vectors.detach().clone()
    prompt.start_with(tiny_vit, "a")
    same = (prompt.vectors == before).all(dim=1).tolist()
    assert same == [True, True, True, False, True]
    with pytest.raises(LearnedPromptError, match=r"there are 4 vectors before the name.*PROMPTS.PREFIX"):
        prompt.start_with(tiny_vit, "a b c d e")


def test_gradients_reach_the_vectors_alone_and_chunks_change_nothing(tiny_vit: ClipModel) -> None:
    names = ["dog", "cat", "traffic light", "tv"]
    grads = []
    for chunk in (256, 1):
        prompt = LearnedPrompt.random(5, 1, tiny_vit.text_tower.width, seed=1)
        (prompt.encode(tiny_vit, names, chunk=chunk)[:, 0] * torch.arange(1, 5)).sum().backward()
        assert prompt.vectors.grad is not None
        grads.append(prompt.vectors.grad)
    assert (grads[0].norm(dim=1) > 0).all()
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in tiny_vit._module.parameters())
    # one entry against a difference quotient
    step = torch.zeros_like(prompt.vectors)
    step[2, 3] = 1e-3
    values = []
    vectors = prompt.vectors.detach()
    for sign in (1, -1):
        moved = LearnedPrompt(vectors[:5] + sign * step[:5], vectors[5:])
        values.append(float((moved.encode(tiny_vit, names)[:, 0].detach() * torch.arange(1, 5)).sum()))
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(grads[0][2, 3]), rel=2e-2, abs=1e-4)


def test_text_is_encoded_once_a_change_of_the_prompt(
    tiny_vit: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = tiny_vit.text_tower.encode_embeddings
    monkeypatch.setattr(
        tiny_vit.text_tower, "encode_embeddings", lambda *given: calls.append(1) or real(*given)
    )
    prompt = LearnedPrompt.random(4, 0, tiny_vit.text_tower.width, seed=0)
    pets, cars = Vocabulary.from_words("dog|hound, cat"), Vocabulary.from_words("car")
    for _ in range(3):
        bank = learned_text_bank(tiny_vit, pets, prompt)
        learned_text_bank(tiny_vit, cars, prompt)
    assert len(calls) == 2
    assert bank.class_of.tolist() == [0, 0, 1]
    with torch.no_grad():
        prompt.vectors += 1
    changed = learned_text_bank(tiny_vit, pets, prompt)
    assert len(calls) == 3
    assert not torch.equal(changed.features, bank.features)
    assert changed.logit_scale == 100
    assert learned_text_bank(tiny_vit, pets, prompt, "model").logit_scale == tiny_vit.logit_scale


def test_what_is_refused(tiny_vit: ClipModel) -> None:
    width = tiny_vit.text_tower.width
    prompt = LearnedPrompt.random(70, 0, width, seed=0)
    long = "a name of many many many words"
    with pytest.raises(LearnedPromptError, match=rf"{long!r} is \d+ tokens.* room for 4 of the 77") as told:
        prompt.encode(tiny_vit, ["dog", long])
    assert "Shorten the name" in str(told.value)
    with pytest.raises(ClipError, match="at least one prompt"):
        prompt.encode(tiny_vit, [])
    with pytest.raises(LearnedPromptError, match=f"is {width} wide, the prompt vectors are {width + 8}"):
        LearnedPrompt.random(4, 0, width + 8, seed=0).encode(tiny_vit, ["dog"])
    free = ClipModel.load("test-tiny-free-text", "random", seed=1)
    with pytest.raises(LearnedPromptError, match="not a causal one"):
        LearnedPrompt.random(4, 0, width, seed=0).encode(free, ["dog"])
    with pytest.raises(LearnedPromptError, match="one or more vectors"):
        LearnedPrompt(torch.zeros(0, 8))
    with pytest.raises(LearnedPromptError, match="one width"):
        LearnedPrompt(torch.zeros(2, 8), torch.zeros(2, 9))


def test_files_keep_vectors_and_facts(
    tiny_vit: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = LearnedPrompt.random(3, 2, tiny_vit.text_tower.width, seed=5)
    facts = PromptFacts(tiny_vit.name, tiny_vit.digest, ("dog", "cat"), "paper", 5, 81.25)
    path = tmp_path / "new" / "prompt.safetensors"
    save_prompt(path, prompt, facts)
    with caplog.at_level(logging.WARNING):
        again, told = load_prompt(path, tiny_vit)
    assert not caplog.records
    assert told == facts
    assert torch.equal(again.vectors, prompt.vectors)
    assert (again.num_prefix, again.num_suffix, again.digest) == (3, 2, prompt.digest)
    assert [file.name for file in path.parent.iterdir()] == ["prompt.safetensors"]
    with caplog.at_level(logging.WARNING):
        load_prompt(path, ClipModel.load("test-tiny-vit", "random", seed=2))
    assert "in other weights" in caplog.text


def test_files_that_do_not_fit(tiny_vit: ClipModel, tmp_path: Path) -> None:
    path = tmp_path / "prompt.safetensors"
    with pytest.raises(LearnedPromptError, match=r"no prompt file.*leave CLIP.PROMPT empty"):
        load_prompt(path)
    save_prompt(path, LearnedPrompt.random(2, 0, 99, seed=0), PromptFacts("other-clip", "abc"))
    with pytest.raises(
        LearnedPromptError, match=r"are 99 wide, the text tower of test-tiny-vit is 32.*other-clip"
    ):
        load_prompt(path, tiny_vit)
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(LearnedPromptError, match=r"no learned prompt.*got weights"):
        load_prompt(path)
    path.write_bytes(b"half of")
    with pytest.raises(LearnedPromptError, match="damaged"):
        load_prompt(path)


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.golden
def test_features_recorded_from_the_original() -> None:
    """Six names in 16 vectors through a text tower of ViT-B/16's size with generated weights."""
    weights = load_module("golden_weights_prompt", GOLDEN / "weights.py")
    plan = weights.plan("r50", learned=True)
    text = {
        name: item for name, item in plan.items() if name.startswith(CLIP_PREFIX) and ".visual." not in name
    }
    state = {
        name.removeprefix(CLIP_PREFIX): torch.from_numpy(weights.tensor(name, *i)) for name, i in text.items()
    }
    module = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    left = module.load_state_dict(state, strict=False)
    assert all(name.startswith("visual.") for name in left.missing_keys)
    assert not left.unexpected_keys
    clip = ClipModel(module, open_clip.get_tokenizer("ViT-B-16-quickgelu"), "ViT-B-16-quickgelu")
    name = "clip_adapter.prompt_learner.prefix_prompt"
    prompt = LearnedPrompt(torch.from_numpy(weights.tensor(name, *plan[name])))
    classes = json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))["classes"]
    bank = learned_text_bank(clip, Vocabulary(tuple((one,) for one in classes)), prompt)
    recorded = torch.from_numpy(np.load(GOLDEN / "text.npz")["learned"][:6])
    torch.testing.assert_close(bank.features, recorded, rtol=0, atol=2e-5)
