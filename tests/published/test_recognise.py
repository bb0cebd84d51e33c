"""What a file is, by its names, and the reason where it cannot be used."""

from __future__ import annotations

import pytest
import torch
from published_files import light_state
from torch import Tensor

from twostage.published.errors import PublishedError
from twostage.published.recognise import Kind, recognise, repaired

ONE = torch.zeros(1)


def named(*names: str) -> dict[str, dict[str, Tensor]]:
    return {"model": dict.fromkeys(names, ONE)}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (named("backbone.res2.0.conv1.weight", "sem_seg_head.predictor.class_embed.layers.0.weight"),
         Kind.ZERO_SHOT),
        (named("sem_seg_head.predictor.query_embed.weight", "sem_seg_head.predictor.class_embed.weight"),
         Kind.SUPERVISED),
        (named("clip_adapter.clip_model.logit_scale", "clip_adapter.prompt_learner.prefix_prompt"),
         Kind.PROMPTS),
        (named("stem.conv1.weight", "res2.0.conv1.weight", "stem.fc.weight"), Kind.BACKBONE),
        (named("backbone.stem.conv1.weight", "pixel_decoder.mask_features.weight"), Kind.OURS),
        ({**named("anything"), "network": {}}, Kind.OURS),
        ({**named("backbone.x"), "vocabulary": {"names": []}}, Kind.OURS),
    ],
)  # fmt: skip
def test_kinds(content: dict[str, dict[str, Tensor]], kind: Kind) -> None:
    assert recognise(content, "file") is kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clip_helper.prompt_learner.ctx", "before the paper's final version"),
        ("model.clip_helper.background", "clip_adapter"),
        ("module.backbone.stem.conv1.weight", "DataParallel"),
        ("image_encoder.patch_embed.proj.weight", "PROPOSALS.NAME sam"),
        ("visual.conv1.weight", "CLIP.PRETRAINED"),
        ("conv1_w", "Caffe2"),
        ("layer1.0.conv1.weight", "torchvision"),
        ("backbone.patch_embed.proj.weight", "Swin"),
        ("backbone.bottom_up.res2.0.conv1.weight", "another model of Detectron2"),
        ("sem_seg_head.layer_1.weight", "another MaskFormer"),
        ("clip_adapter.clip_model.logit_scale", "part of a published checkpoint"),
        ("weird", "match no published naming"),
    ],
)
def test_strangers_are_named(name: str, words: str) -> None:
    with pytest.raises(PublishedError, match=words) as caught:
        recognise(named(name), "some/file.pth")
    assert "some/file.pth" in str(caught.value)


def test_an_empty_file() -> None:
    with pytest.raises(PublishedError, match="0 tensors"):
        recognise(named(), "file")


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the released code renames a head whose version it does not know: everything but the predictor."""
    head = "sem_seg_head."
    return {
        f"{head}pixel_decoder.{name.removeprefix(head)}"
        if name.startswith(head) and not name.startswith(f"{head}predictor")
        else name: tensor
        for name, tensor in state.items()
    }


def test_a_renamed_pixel_decoder_is_refused_and_repaired_on_demand() -> None:
    state = light_state("r50")
    broken = doubled(state)
    assert broken.keys() != state.keys()
    with pytest.raises(PublishedError, match="leaves the pixel decoder random"):
        recognise({"model": broken}, "file")
    mended = repaired(broken)
    assert mended.keys() == state.keys()
    assert all(mended[name] is state[name] for name in state)


def test_repair_never_overwrites() -> None:
    both = light_state("r50") | doubled(light_state("r50"))
    with pytest.raises(PublishedError, match="two tensors in one place"):
        repaired(both)
