"""Small CLIP models for the dense readouts."""

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
    "test-dense-vit": {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8},
    "test-dense-rn": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
}


@pytest.fixture(scope="session", autouse=True)
def _dense_configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tmp_path_factory.mktemp("configs")
    for name, vision in CONFIGS.items():
        path = folder / f"{name}.json"
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
        path.write_text(json.dumps(config), encoding="utf-8")
        register_model_config(path)


@pytest.fixture(scope="session")
def vit() -> ClipModel:
    return ClipModel.load("test-dense-vit", "random", seed=2)


@pytest.fixture(scope="session")
def resnet() -> ClipModel:
    return ClipModel.load("test-dense-rn", "random", seed=2)
