"""Small CLIP models with either tower, random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twostage.clip import mini
from twostage.clip.model import ClipModel, register_model_config

TEXT = {
    "context_length": 24,
    "vocab_size": mini.vocabulary_size(),
    "width": 32,
    "heads": 2,
    "layers": 1,
    "tokenizer_kwargs": {"bpe_path": str(mini.MERGES)},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "test-pooled-vit": {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8},
    "test-pooled-rn": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 8},
}


def _model(folder: Path, name: str) -> ClipModel:
    path = folder / f"{name}.json"
    config = {"embed_dim": 32, "vision_cfg": CONFIGS[name], "text_cfg": TEXT}
    path.write_text(json.dumps(config), encoding="utf-8")
    register_model_config(path)
    return ClipModel.load(name, "random", seed=2)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """Four blocks of width 64 with four heads, 4 x 4 patches of 8 pixels."""
    return _model(tmp_path_factory.mktemp("vit"), "test-pooled-vit")


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> ClipModel:
    """3 x 3 places of 32 pixels."""
    return _model(tmp_path_factory.mktemp("rn"), "test-pooled-rn")
