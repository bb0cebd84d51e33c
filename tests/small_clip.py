"""Small CLIP models with random weights and either tower, made once a session by the fixtures that ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def make(folder: Path, name: str, vision: dict[str, Any]) -> ClipModel:
    """A model of this name, seed 2; joint width 32."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}), encoding="utf-8")
    register_model_config(path)
    return ClipModel.load(name, "random", seed=2)


def vit(folder: Path) -> ClipModel:
    """Four blocks of width 64 with four heads; 4 x 4 patches of 8 pixels by itself."""
    sizes = {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 8}
    return make(folder, "test-small-vit", sizes)


def resnet(folder: Path, image_size: int) -> ClipModel:
    """A ModifiedResNet of width 8, whose places are 32 pixels wide."""
    sizes = {"image_size": image_size, "layers": [1, 1, 1, 1], "width": 8}
    return make(folder, f"test-small-rn-{image_size}", sizes)
