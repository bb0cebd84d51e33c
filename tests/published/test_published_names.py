"""The two-way table of names: held against the generator's list of published names, which knows nothing of
the table."""

from __future__ import annotations

import pytest
import torch
import weights
from published_files import light_state

from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer
from twostage.published.errors import PublishedError
from twostage.published.names import STAGE_ONE, numbers_after, our_name, published_name
from twostage.published.reading import read_published
from twostage.published.recognise import Kind, recognise
from twostage.published.writing import to_published

OTHER_PARTS = (
    "criterion.",
    "clip_adapter.clip_model.",
    "clip_adapter.pixel_",
    "clip_adapter.prompt_learner.",
)


@pytest.mark.parametrize("depth", ["r50", "r101c"])
def test_names_and_shapes_are_those_of_the_network(depth: str) -> None:
    """The generator lists published names and shapes; our network lists ours. The table has to join them."""
    listed = {name: shape for name, (shape, _) in weights.plan(depth).items()}
    translated = {our_name(name): shape for name, shape in listed.items() if our_name(name)}
    with torch.device("meta"):
        network = MaskFormer(MaskFormerConfig(backbone=depth))
    assert translated == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    left = [name for name in listed if our_name(name) is None]
    assert left
    assert all(name.startswith(OTHER_PARTS) for name in left)


@pytest.mark.parametrize("depth", ["r50", "r101c"])
def test_both_directions_cancel(depth: str) -> None:
    for name in weights.plan(depth):
        ours = our_name(name)
        assert ours is None or published_name(ours) == name
    assert our_name("sem_seg_head.predictor.class_embed.weight") == "class_head.linear.weight"
    assert published_name("class_head.linear.bias") == "sem_seg_head.predictor.class_embed.bias"


def test_no_entry_begins_another() -> None:
    for side in (list(STAGE_ONE), list(STAGE_ONE.values())):
        assert len(set(side)) == len(side)
        assert not [(a, b) for a in side for b in side if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    "name",
    ["sem_seg_head.pixel_decoder.adapter_4.weight", "sem_seg_head.pixel_decoder.pixel_decoder.layer_1.weight",
     "clip_adapter.non_object_embedding.x", "decoder.norm.weight",
     "_region_clip_adapter.non_object_embedding"],
)  # fmt: skip
def test_foreign_names_have_no_place(name: str) -> None:
    assert our_name(name) is None


def test_ours_have_no_published_name_where_the_released_network_lacks_them() -> None:
    for name in ("class_head.pooled.weight", "pixel_classifier.weight", "level_embed.weight", "head.weight"):
        assert published_name(name) is None


def test_numbers() -> None:
    assert numbers_after("res2.", ["res2.0.a", "res2.10.a", "res2.1.b", "res3.5.c", "res2.x.d"]) == [0, 1, 10]


@pytest.mark.parametrize(
    ("depth", "learned", "separate", "keys"),
    [("r101c", False, False, 982), ("r101c", True, False, 987), ("r50", False, False, 717),
     ("r101c", False, True, 1292)],
)  # fmt: skip
def test_key_counts_and_every_key_has_a_part(depth: str, learned: bool, separate: bool, keys: int) -> None:
    state = light_state(depth, learned, 15 if separate else 156, separate)
    assert len(state) == keys
    report = read_published(state, recognise({"model": state}, "file"), "file").report
    ignored = sum(len(names) for names in report.ignored.values())
    assert sum(report.mapped.values()) + ignored == keys


@pytest.mark.parametrize("depth", ["r50", "r101c"])
def test_ours_to_theirs_to_ours(depth: str) -> None:
    network = MaskFormer(MaskFormerConfig(backbone=depth))
    own = network.state_dict()
    state = to_published(own, 156)
    names = [name for name, (_, role) in weights.plan(depth).items() if our_name(name)]
    assert sorted(state) == sorted([*names, "criterion.empty_weight"])
    full = {**light_state(depth), **state}
    back = read_published(full, Kind.ZERO_SHOT, "file").stage_one
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_theirs_to_ours_to_theirs() -> None:
    state = light_state("r101c", learned=True)
    found = read_published(state, Kind.ZERO_SHOT, "file")
    back = to_published(found.stage_one, found.classes, found.clip, found.prompt)
    assert back.keys() == state.keys()
    for name in state:
        assert torch.equal(back[name], state[name]), name


def test_the_released_head_is_told_its_version() -> None:
    """Without it that head renames its tensors when it loads them, and leaves the pixel decoder random."""
    state = to_published({"query_embed.weight": torch.zeros(1, 4)}, 0)
    assert state._metadata["sem_seg_head"]["version"] >= 2  # type: ignore[attr-defined]


def test_what_has_no_published_form_is_refused() -> None:
    with pytest.raises(PublishedError, match="no place for 1 tensors"):
        to_published({"class_head.pooled.weight": torch.zeros(1)}, 0)
    with pytest.raises(PublishedError, match="beside their CLIP"):
        to_published({}, 0, prompt=torch.zeros(16, 512))
