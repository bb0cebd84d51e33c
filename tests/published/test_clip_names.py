"""OpenAI's architectures by names and shapes, held against open_clip's own models."""

from __future__ import annotations

import open_clip
import pytest
import torch

from twostage.published.clip_names import ARCHITECTURES, clip_shapes, which_clip
from twostage.published.errors import PublishedError


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shapes_are_open_clips(name: str) -> None:
    with torch.device("meta"):
        module = open_clip.create_model(name, pretrained=None, device="meta")
    own = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert clip_shapes(ARCHITECTURES[name]) == own
    assert which_clip(module.state_dict(), "file") == name


def test_the_key_count_of_the_paper_s_model() -> None:
    assert len(clip_shapes(ARCHITECTURES["ViT-B-16-quickgelu"])) == 302


def test_other_models_are_refused() -> None:
    with pytest.raises(PublishedError, match=r"none of ViT-B-32-quickgelu, .* are \(0, 0, 0"):
        which_clip({"visual.other": torch.zeros(1)}, "file")
