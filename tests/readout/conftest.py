"""A small CLIP with a VisionTransformer for the readout's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twostage.clip import mini
from twostage.clip.model import ClipModel, register_model_config

VISION = {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8}
TEXT = {
    "context_length": 24,
    "vocab_size": mini.vocabulary_size(),
    "width": 32,
    "heads": 2,
    "layers": 1,
    "tokenizer_kwargs": {"bpe_path": str(mini.MERGES)},
}


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """Four blocks of width 64, patches of 8 pixels, 32 pixels wide by itself; random weights."""
    path: Path = tmp_path_factory.mktemp("configs") / "test-readout-vit.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}), encoding="utf-8")
    register_model_config(path)
    return ClipModel.load("test-readout-vit", "random", seed=2)
