"""How networks of the hub are read, and what is said of files that are none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_hub import eomt, mask2former, maskformer, saved, transformers

from twostage.proposals import _hf_models, _hf_queries
from twostage.proposals.hf import HfConfig, HfProposals
from twostage.registry import ComponentError
from twostage.weights import WeightsError


def test_published_preparation_is_used(tmp_path: Path) -> None:
    saved(mask2former, tmp_path)
    assert _hf_models.load(str(tmp_path)).short == 800
    told = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.1],
        "size": {"shortest_edge": 96, "longest_edge": 128},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    model = _hf_models.load(str(tmp_path))
    assert (model.mean, model.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (model.short, model.long) == (96, 128)
    assert _hf_queries.frame_of(model, (10, 10), 0).inner_hw == (96, 96)
    assert _hf_queries.frame_of(model, (10, 40), 0).inner_hw == (32, 128)
    assert _hf_queries.frame_of(model, (10, 40), 48).inner_hw == (16, 64)
    old = {"size": 640, "max_size": 900}
    assert _hf_models._preparation(old) == {"short": 640, "long": 900}
    drawn = {"size": {"height": 480, "width": 600}}
    assert _hf_models._preparation(drawn) == {"short": 480, "long": 800}
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": told}))
    assert _hf_models._processor(str(tmp_path), "") == told
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json: cannot be read"):
        _hf_models.load(str(tmp_path))


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    saved(lambda: mask2former().half(), tmp_path)
    assert {weight.dtype for weight in _hf_models.load(str(tmp_path)).network.parameters()} == {torch.float32}


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = saved(mask2former, tmp_path) / "model.safetensors"
    whole = load_file(path)
    without_losses = {name: value for name, value in whole.items() if not name.startswith("criterion.")}
    assert len(without_losses) < len(whole)
    save_file(without_losses, path, {"format": "pt"})
    assert _hf_models.load(str(tmp_path)).kind == "mask2former"
    gone = {name: value for name, value in whole.items() if name != "class_predictor.bias"}
    save_file(gone, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 tensors of Mask2Former.* missing .* class_predictor\.bias"):
        _hf_models.load(str(tmp_path))
    save_file({**whole, "class_predictor.bias": torch.zeros(9)}, path, {"format": "pt"})
    with pytest.raises(WeightsError):
        _hf_models.load(str(tmp_path))
    path.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="cannot be read as a model"):
        _hf_models.load(str(tmp_path))


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    def refused(weights: Path | str, says: str, error: type[Exception] = WeightsError) -> None:
        with pytest.raises(error, match=says):
            HfProposals(HfConfig(str(weights)), "cpu")

    refused(tmp_path / "none", "no such folder, and no name on the hub")
    refused("", "no such folder|has no config")
    refused(tmp_path, r"has no config\.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(tmp_path, r"has no \.safetensors file. Pickled weights")
    (tmp_path / "model.safetensors").touch()
    refused(tmp_path, "type 'bert' gives no masks here; known are maskformer, mask2former", ComponentError)
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, r"config\.json: cannot be read")
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path, "expected a mapping, got list")
    refused(tmp_path / "config.json", "is a file; expected a folder")


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect to the hub.\nMore lines.")

    monkeypatch.setattr(transformers.PretrainedConfig, "get_config_dict", nobody)
    source = HfProposals(HfConfig("somebody/some-model"), "cpu")
    with pytest.raises(
        WeightsError,
        match=r"some-model: no such folder, and on the hub: We couldn't connect.*--local-dir FOLDER",
    ):
        source.propose([torch.zeros(3, 8, 8, dtype=torch.uint8)])


def test_a_release_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_hf_models.CLASSES, "eomt", "EomtForTheFuture")
    with pytest.raises(
        ComponentError, match=r"transformers [\d.]+\S* has no EomtForTheFuture: it is too old"
    ):
        _hf_models.load(str(saved(eomt, tmp_path)))


def test_only_safetensors_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    real = transformers.MaskFormerForInstanceSegmentation.from_pretrained

    def watch(source: str, **options: Any) -> Any:
        given.update(options)
        return real(source, **options)

    monkeypatch.setattr(transformers.MaskFormerForInstanceSegmentation, "from_pretrained", watch)
    _hf_models.load(str(saved(maskformer, tmp_path)), "abc")
    assert given["use_safetensors"] is True
    assert given["trust_remote_code"] is False
    assert given["revision"] == "abc"


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ComponentError, match=r"pip install 'twostage\[hf\]'"):
        HfProposals(HfConfig("a/b"), "cpu")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "panoptik"}, "unknown task 'panoptik'.*panoptic"),
        ({"size": -1}, "size must be at least 0"),
        ({"min_score": float("nan")}, "min_score must be at least 0"),
        ({"points_per_side": 0}, "points_per_side must be at least 1"),
        ({"box_nms_thresh": 1.5}, r"box_nms_thresh must lie in \[0, 1\]"),
    ],
)
def test_options_that_do_not_do(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ComponentError, match=says):
        HfConfig("a/b", **options)
