"""Taking a published checkpoint apart: each part in its place, nothing by halves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from published_files import light_state
from torch import Tensor

from twostage.data import vocabularies
from twostage.published.errors import PublishedError
from twostage.published.reading import read_published
from twostage.published.recognise import Kind
from twostage.published.trained_words import known_counts, trained_words

State = dict[str, Tensor]


def test_the_parts_of_a_learned_checkpoint() -> None:
    state = light_state("r101c", learned=True)
    found = read_published(state, Kind.ZERO_SHOT, "file")
    assert found.network["backbone"] == "r101c"
    assert {name: found.network[name] for name in ("num_queries", "decoder_layers", "embedding_dim")} == {
        "num_queries": 100, "decoder_layers": 6, "embedding_dim": 512,
    }  # fmt: skip
    assert found.clip_name == "ViT-B-16-quickgelu"
    assert len(found.clip) == 302
    assert found.clip["visual.proj"] is state["clip_adapter.clip_model.visual.proj"]
    assert found.stage_one["class_head.no_object"] is state["clip_adapter.non_object_embedding"]
    assert found.prompt is found.crop_prompt is state["clip_adapter.prompt_learner.prefix_prompt"]
    assert not found.separate
    words = vocabularies.load("coco_stuff").vocabulary
    assert found.vocabulary is not None
    assert found.vocabulary.shown == tuple(
        n for n, seen in zip(words.shown, words.seen or (), strict=True) if seen
    )


def test_separate_adapters() -> None:
    state = light_state("r101c", train_classes=15, separate=True)
    found = read_published(state, Kind.ZERO_SHOT, "file")
    assert found.separate
    assert found.prompt is None
    assert found.crop_prompt is state["_region_clip_adapter.prompt_learner.prefix_prompt"]
    assert found.vocabulary is not None
    assert found.vocabulary.shown[-1] == "person"
    assert found.stage_one["class_head.no_object"] is state["clip_adapter.non_object_embedding"]


@pytest.mark.parametrize(("rows", "words"), [(157, 156), (16, 15), (172, 171), (21, 20), (101, 0)])
def test_the_number_of_classes_tells_the_words(rows: int, words: int) -> None:
    found = read_published(light_state("r50", train_classes=rows - 1), Kind.ZERO_SHOT, "file")
    assert found.classes == rows - 1
    assert (0 if found.vocabulary is None else len(found.vocabulary)) == words
    assert ("unknown list" in found.report.format()) == (words == 0)


def test_trained_words_are_all_seen() -> None:
    assert known_counts() == (15, 20, 156, 171)
    for count in known_counts():
        words = trained_words(count)
        assert words is not None
        assert words.seen == (True,) * count
    assert "cow" not in trained_words(156).shown  # type: ignore[union-attr]
    assert "cow" in trained_words(171).shown  # type: ignore[union-attr]
    assert trained_words(155) is None


def test_a_supervised_network() -> None:
    state = {
        n: t for n, t in light_state("r50", train_classes=171).items() if not n.startswith("clip_adapter.")
    }
    head = "sem_seg_head.predictor.class_embed."
    state = {n: t for n, t in state.items() if not n.startswith(head)}
    state |= {f"{head}weight": torch.zeros(172, 256), f"{head}bias": torch.zeros(172)}
    found = read_published(state, Kind.SUPERVISED, "file")
    assert (found.network["class_head"], found.network["num_classes"]) == ("linear", 171)
    assert found.stage_one["class_head.linear.weight"] is state[f"{head}weight"]
    assert found.clip_name == ""


def test_prompts_alone_with_and_without_clip() -> None:
    whole = light_state("r50", learned=True)
    for kept in (
        ("clip_adapter.clip_model.", "clip_adapter.prompt_learner."),
        ("clip_adapter.prompt_learner.",),
    ):
        state = {name: tensor for name, tensor in whole.items() if name.startswith(kept)}
        found = read_published(state, Kind.PROMPTS, "file")
        assert found.crop_prompt is not None
        assert found.crop_prompt.shape == (16, 512)
        assert not found.stage_one


def drop(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def put(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda state: {**state, name: tensor}


CLIP = "clip_adapter.clip_model."
LEARNER = "clip_adapter.prompt_learner."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("backbone.res4.22.conv3.norm.running_var"), "missing: 1 (backbone.res4.22.conv3.norm."),
        (drop("sem_seg_head.pixel_decoder.layer_4.norm.bias"), "missing: 1 (sem_seg_head.pixel_"),
        (drop("clip_adapter.non_object_embedding"), "missing: 1 (clip_adapter.non_object_embedding)"),
        (drop(f"{CLIP}visual.transformer.resblocks.7.ln_1.bias"), "missing: 1"),
        (drop(f"{CLIP}token_embedding.weight"), "missing: 1"),
        (drop(f"{LEARNER}prefix_prompt"), "missing: 1 (clip_adapter.prompt_learner.prefix_prompt)"),
        (drop("sem_seg_head.predictor.query_embed.weight"), "no sem_seg_head.predictor.query_embed.weight"),
        (drop("backbone.stem.conv3.weight"), "the backbone is a stem of one convolution"),
        (put("backbone.res2.3.conv1.weight", torch.zeros(1)), "blocks 4-4-23-3"),
        (put("backbone.stem.conv1.bias", torch.zeros(64)), "unexpected: 1 (backbone.stem.conv1.bias)"),
        (put("sem_seg_head.predictor.transformer.encoder.norm.weight", torch.zeros(256)), "unexpected: 1"),
        (put(f"{LEARNER}suffix_prompt", torch.zeros(4, 512)), "unexpected: 1"),
        (put("pixel_mean", torch.zeros(3, 1, 1)), "unexpected: 1 (pixel_mean)"),
        (put("backbone.stem.conv2.weight", torch.zeros(64, 64, 1, 1)), "3, 3), got (64, 64, 1, 1)"),
        (put(f"{CLIP}visual.proj", torch.zeros(768, 640)), "unfit: 1 (clip_adapter.clip_model.visual.proj"),
        (put(f"{CLIP}visual.positional_embedding", torch.zeros(50, 768)), "is none of ViT-B-32"),
        (put(f"{LEARNER}prefix_prompt", torch.zeros(16, 640)), "got (16, 640)"),
        (put(f"{LEARNER}dot_signal", torch.ones(1, 512)), "not the embedding of token 269"),
        (put("clip_adapter.pixel_mean", torch.zeros(1, 3, 1, 1)), "not CLIP's own"),
        (put("criterion.empty_weight", torch.zeros(3, 3)), "expected (1,), got (3, 3)"),
    ],
)  # fmt: skip
def test_nothing_is_taken_by_halves(change: Callable[[State], State], words: str) -> None:
    with pytest.raises(PublishedError) as caught:
        read_published(change(light_state("r101c", learned=True)), Kind.ZERO_SHOT, "some/file.pth")
    assert words in str(caught.value)
    assert "some/file.pth" in str(caught.value)


def test_two_different_clips_are_refused() -> None:
    state = light_state("r101c", train_classes=15, separate=True)
    state["_region_clip_adapter.clip_model.ln_final.bias"] = torch.zeros(512)
    with pytest.raises(PublishedError, match=r"ln_final\.bias: another than stage one's"):
        read_published(state, Kind.ZERO_SHOT, "file")


@pytest.mark.parametrize(
    "name", ["criterion.empty_weight", "clip_adapter.pixel_mean", f"{LEARNER}pad_signal"]
)
def test_what_is_not_used_may_be_absent(name: str) -> None:
    state = drop(name)(light_state("r101c", learned=True))
    found = read_published(state, Kind.ZERO_SHOT, "file")
    assert found.report.complete
    assert (found.vocabulary is None) == (name == "criterion.empty_weight")


def test_the_report_counts_and_gives_reasons() -> None:
    text = read_published(light_state("r101c", learned=True), Kind.ZERO_SHOT, "file").report.format()
    for line in ("mapped: 677 tensors of stage one", "mapped: 302 tensors of CLIP ViT-B-16-quickgelu",
                 "mapped: 1 tensors of learned prompts", "ignored: 1 (criterion.empty_weight)",
                 "r101c, 156 trained classes"):  # fmt: skip
        assert line in text
