"""Tiny genuine open_clip models with the small tokenizer: built in a moment, unlike those with 49,408
tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twostage.clip import mini
from twostage.clip.model import ClipModel, register_model_config

TEXT = {
    "context_length": 77,
    "vocab_size": mini.vocabulary_size(),
    "width": 32,
    "heads": 2,
    "layers": 2,
    "tokenizer_kwargs": {"bpe_path": str(mini.MERGES)},
}
CONFIGS = {
    "test-tiny-vit": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "test-tiny-rn": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": TEXT,
    },
    "test-tiny-free-text": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
}


@pytest.fixture(scope="session", autouse=True)
def _tiny_configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        register_model_config(path)


@pytest.fixture(scope="session")
def tiny_vit() -> ClipModel:
    return ClipModel.load("test-tiny-vit", "random", seed=1)


@pytest.fixture(scope="session")
def tiny_rn() -> ClipModel:
    return ClipModel.load("test-tiny-rn", "random", seed=1)
