"""What the door to open_clip lets in, and with which words it refuses."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from twostage.clip import checks, mini
from twostage.clip.checks import ClipError
from twostage.clip.model import ClipModel, model_names

TINY = "test-tiny-vit"


def weights_of(clip: ClipModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in clip._module.state_dict().items()}


def same_images(one: ClipModel, other: ClipModel) -> bool:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.equal(one.encode_images(pixels), other.encode_images(pixels))


@pytest.mark.parametrize(
    ("name", "pretrained", "seed", "words"),
    [
        ("ViT-B16", "openai", None, "Did you mean 'ViT-B-16'"),
        ("ViT-B-16", "opanai", None, "Did you mean 'openai'"),
        ("ViT-B-16", None, None, "say which weights"),
        (TINY, "random", None, "need a seed"),
        (TINY, "no/such/file.pt", None, "does not exist"),
        ("RN50-quickgelu", "laion400m_e31", None, "It belongs to"),
        ("local-dir:/no/such/folder", None, None, "open_clip_config.json"),
        ("local-dir:/no/such/folder", "openai", None, "has no place here"),
        (TINY, "local-dir:/no/such/folder", None, "open_clip_config.json"),
    ],
)
def test_refusals_say_what_to_do(name: str, pretrained: str | None, seed: int | None, words: str) -> None:
    with pytest.raises(ClipError, match=words):
        ClipModel.load(name, pretrained, seed=seed)


def test_no_network_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://no-such-host.invalid")
    with pytest.raises(ClipError, match="Without a network, give the path"):
        ClipModel.load("ViT-B-16", "openai", cache_dir=tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_local_files(tiny_vit: ClipModel, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(weights_of(tiny_vit), path)
    else:
        save_file(weights_of(tiny_vit), path)
    loaded = ClipModel.load(TINY, path)
    assert same_images(loaded, tiny_vit)
    assert loaded.digest == tiny_vit.digest


def test_half_precision_files_load_as_float32(tiny_vit: ClipModel, tmp_path: Path) -> None:
    save_file({k: v.half() for k, v in weights_of(tiny_vit).items()}, tmp_path / "half.safetensors")
    loaded = ClipModel.load(TINY, tmp_path / "half.safetensors")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.visual.proj, tiny_vit.visual.proj.half().float())


@pytest.mark.parametrize("as_name", [True, False])
def test_local_folder(tiny_vit: ClipModel, tmp_path: Path, as_name: bool) -> None:
    config = {"model_cfg": open_clip.get_model_config(TINY), "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    folder = f"local-dir:{tmp_path}"
    with pytest.raises(ClipError, match="holds no weights"):
        ClipModel.load(folder)
    save_file(weights_of(tiny_vit), tmp_path / "model.safetensors")
    loaded = ClipModel.load(folder) if as_name else ClipModel.load(TINY, folder)
    assert same_images(loaded, tiny_vit)
    assert loaded.mean == (0.5, 0.4, 0.3)


def test_unfit_weights_are_listed_by_prefix(tiny_vit: ClipModel, tmp_path: Path) -> None:
    state = weights_of(tiny_vit)
    state["visual.proj"] = torch.zeros(64, 7)
    state["backbone.stem.weight"] = torch.zeros(1)
    del state["ln_final.weight"], state["ln_final.bias"]
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(ClipError) as caught:
        ClipModel.load(TINY, tmp_path / "other.safetensors")
    message = str(caught.value)
    assert "missing: ln_final.weight (1), ln_final.bias (1)" in message
    assert "not wanted: backbone.stem (1)" in message
    assert "visual.proj (64, 7) instead of (64, 24)" in message


def test_damaged_and_unsafe_files(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights at all")
    with pytest.raises(ClipError, match="cannot be read as weights"):
        ClipModel.load(TINY, broken)
    unsafe = tmp_path / "unsafe.pt"
    unsafe.write_bytes(pickle.dumps({"weight": Path("a pickle may run code")}, protocol=2))
    with pytest.raises(ClipError, match="cannot be read as weights"):
        ClipModel.load(TINY, unsafe)


def serve_tag(monkeypatch: pytest.MonkeyPatch, tag: str, path: Path, quick_gelu: bool) -> None:
    """Make open_clip believe that the tiny model has this tag, already downloaded."""
    entry: dict[str, Any] = {"url": "", "hf_hub": "x/", "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    if quick_gelu:
        entry["quick_gelu"] = True
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, {tag: entry})
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: str(path))


@pytest.mark.parametrize("quick", [True, False])
def test_a_tag_decides_the_activation(
    quick: bool, tiny_vit: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(weights_of(tiny_vit), tmp_path / "tag.safetensors")
    serve_tag(monkeypatch, "openai", tmp_path / "tag.safetensors", quick)
    loaded = ClipModel.load(TINY, "openai")
    assert checks.activations(loaded._module) == {"QuickGELU" if quick else "GELU"}
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert same_images(loaded, tiny_vit) is not quick
    assert (loaded.digest == tiny_vit.digest) is not quick


def test_the_built_module_is_looked_at(
    tiny_vit: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(weights_of(tiny_vit), tmp_path / "tag.safetensors")
    serve_tag(monkeypatch, "openai", tmp_path / "tag.safetensors", True)
    build = open_clip.create_model

    def forgetful(*args: Any, force_quick_gelu: bool = False, **kwargs: Any) -> torch.nn.Module:
        return build(*args, **kwargs)

    monkeypatch.setattr(open_clip, "create_model", forgetful)
    with (
        pytest.raises(ClipError, match="need QuickGELU in every block"),
        pytest.warns(UserWarning, match="QuickGELU mismatch"),
    ):
        ClipModel.load(TINY, "openai")


def test_a_file_named_like_openai_is_pointed_out(
    tiny_vit: ClipModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(weights_of(tiny_vit), tmp_path / "vit_openai.safetensors")
    with caplog.at_level(logging.WARNING):
        ClipModel.load(TINY, tmp_path / "vit_openai.safetensors")
    assert "usually need the model test-tiny-vit-quickgelu" in caplog.text


def test_random_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, three = (ClipModel.load(TINY, "random", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.digest == two.digest != three.digest
    assert one.digest != one.to_dtype(torch.bfloat16).digest


def test_shipped_models_are_known_by_name() -> None:
    assert set(mini.NAMES) <= set(model_names())
    clip = ClipModel.load("twostage-mini-vit", "random", seed=0)
    assert clip.context_length == 24
    assert clip._tokenizer.vocab_size == mini.vocabulary_size()


def test_a_tokenizer_of_another_size_is_refused(tiny_vit: ClipModel) -> None:
    class Other:
        vocab_size = 49408

    with pytest.raises(ClipError, match=r"knows 49408 tokens, the text tower \d{3}\."):
        ClipModel(tiny_vit._module, Other(), "x")


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_openai_archives(tmp_path: Path) -> None:
    """OpenAI's own files are TorchScript archives with three integers beside the weights."""
    module = open_clip.create_model(TINY, pretrained=None, force_quick_gelu=True)
    state = {name: value.half().float() for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    for name in ("input_resolution", "context_length", "vocab_size"):
        if hasattr(module, name):
            delattr(module, name)
        module.register_buffer(name, torch.tensor(32))
    inputs = {"encode_image": torch.ones(1, 3, 32, 32), "encode_text": torch.ones(1, 77, dtype=torch.long)}
    archive = torch.jit.trace_module(module.eval(), inputs, check_trace=False)
    archive.save(str(tmp_path / "ViT.pt"))
    loaded = ClipModel.load(TINY, tmp_path / "ViT.pt")
    assert checks.activations(loaded._module) == {"QuickGELU"}
    got = loaded._module.state_dict()
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], value) for name, value in state.items())
    with pytest.raises(ClipError, match="do not fit: missing: visual"):
        ClipModel.load("test-tiny-rn", tmp_path / "ViT.pt")
