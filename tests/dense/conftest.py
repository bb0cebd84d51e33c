"""Small CLIP models for the dense readouts, and the recorded numbers of the public implementations."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from twostage.clip import mini
from twostage.clip.model import ClipModel, register_model_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dense"
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


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_dense_{name}", GOLDEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def recorded() -> SimpleNamespace:
    """records by (method, size), the input makers, and the weights, whose digest is checked."""
    record = json.loads((GOLDEN / "maskclip.json").read_text(encoding="utf-8"))
    weights = _module("weights")
    state = weights.state_dict("a")
    assert weights.fingerprint(state) == record["weights_sha256"]["a"]
    cases = {(r["method"], r["size"]): r for r in record["records"]}
    return SimpleNamespace(cases=cases, inputs=_module("inputs"), state=state)
