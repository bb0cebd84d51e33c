"""Which prompts each stage uses: options before what lies in the weights, stage one's own before all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from published_files import light_state
from torch import Tensor

from twostage.checkpoints import Weights
from twostage.clip.learned_prompt import LearnedPrompt
from twostage.clip.prompt_file import PromptFacts, save_prompt
from twostage.config import ClipConfig
from twostage.published.reading import read_published
from twostage.published.recognise import Kind
from twostage.wording import Prompts, Texts, choose_prompts

OPTIONS = ClipConfig()
CLIP: Any = SimpleNamespace(
    device=torch.device("cpu"), name="fake", digest="", text_tower=SimpleNamespace(width=512)
)


def weights(learned: bool = False, separate: bool = False) -> Weights:
    state = light_state("r101c", learned, 15 if separate else 156, separate)
    published = read_published(state, Kind.ZERO_SHOT, "file")
    return Weights("file", Kind.ZERO_SHOT, {"model": state}, published)


def chosen(options: ClipConfig, given: Weights | None) -> Prompts:
    return choose_prompts(options, lambda: given, lambda: CLIP)


def vectors(prompt: LearnedPrompt | None) -> Tensor:
    assert prompt is not None
    return prompt.vectors.detach()


def test_templates_where_nothing_is_learned() -> None:
    for given in (None, weights()):
        assert chosen(OPTIONS, given) == Prompts()
        assert not chosen(OPTIONS, given).separate
        assert chosen(replace(OPTIONS, stage_one_templates="vild"), given).separate


def test_learned_vectors_inside_serve_both_stages() -> None:
    given = weights(learned=True)
    found = chosen(OPTIONS, given)
    assert found.crops is found.stage_one
    assert not found.separate
    assert torch.equal(vectors(found.crops), given.published.prompt)  # type: ignore[union-attr,arg-type]
    own = chosen(replace(OPTIONS, stage_one_templates="vild"), given)
    assert own.crops is not None
    assert (own.stage_one, own.stage_one_templates, own.separate) == (None, "vild", True)


def test_a_separate_adapter_leaves_stage_one_its_fixed_template() -> None:
    given = weights(separate=True)
    found = chosen(OPTIONS, given)
    assert (found.stage_one, found.stage_one_templates, found.separate) == (None, "single", True)
    assert torch.equal(vectors(found.crops), given.published.region_prompt)  # type: ignore[union-attr,arg-type]
    assert chosen(replace(OPTIONS, stage_one_templates="vild"), given).stage_one_templates == "vild"


def test_a_file_comes_before_what_is_inside(tmp_path: Path) -> None:
    drawn = LearnedPrompt.random(4, 0, 512, seed=3)
    save_prompt(tmp_path / "prompt.safetensors", drawn, PromptFacts())
    options = replace(OPTIONS, prompt=str(tmp_path / "prompt.safetensors"))
    for given in (None, weights(learned=True)):
        found = chosen(options, given)
        assert torch.equal(vectors(found.crops), drawn.vectors)
        assert not found.separate


def test_a_published_file_as_the_prompt(tmp_path: Path) -> None:
    state = light_state("r50", learned=True)
    torch.save({"model": state}, tmp_path / "prompts.pth")
    found = chosen(replace(OPTIONS, prompt=str(tmp_path / "prompts.pth")), None)
    assert torch.equal(vectors(found.crops), state["clip_adapter.prompt_learner.prefix_prompt"])


def test_given_text_features_need_no_prompt() -> None:
    def never() -> Any:
        raise AssertionError("nothing has to be opened")

    options = replace(OPTIONS, text_features="features.npy", prompt="prompt.safetensors")
    assert choose_prompts(options, never, never) == Prompts()


@pytest.mark.parametrize(("own", "words"), [("", 1), ("vild", 14)])
def test_stage_one_templates_are_read(own: str, words: int) -> None:
    options = replace(OPTIONS, templates="single", stage_one_templates=own)
    texts = Texts(options, lambda: CLIP, lambda: None, torch.device("cpu"))
    assert len(texts.stage_one_templates) == words
    assert texts.wording == texts.templates == ("a sculpture of a {}.",)


def test_learned_wording_is_told_by_digest() -> None:
    texts = Texts(OPTIONS, lambda: CLIP, lambda: weights(learned=True), torch.device("cpu"))
    (said,) = texts.wording
    assert said.startswith("16 learned vectors, digest ")
