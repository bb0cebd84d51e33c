"""MODEL.WEIGHTS of every kind: what is loaded, what is refused, and what the message tells to do."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_files import light_state
from torch import Tensor, nn

from twostage.builder import Builder
from twostage.checkpoints import open_weights, published_prompts, starting_weights, trained_names
from twostage.clip.learned_prompt import LearnedPrompt
from twostage.config import ConfigError, parse_config
from twostage.engine.checkpoint import CheckpointError, write_weights
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer
from twostage.published.errors import PublishedError
from twostage.published.recognise import Kind

SMALL = {
    "backbone": "small", "small_widths": (8, 8, 16, 16), "pixel_dim": 16, "mask_dim": 16, "hidden_dim": 16,
    "num_queries": 5, "decoder_layers": 1, "num_heads": 2, "feedforward_dim": 32, "embedding_dim": 8,
    "class_hidden_dim": 16,
}  # fmt: skip


def saved(path: Path, model: dict[str, Tensor], **more: Any) -> Path:
    torch.save({"model": model, "optimizer": {}, "scheduler": {}, "iteration": 59999, **more}, path)
    return path


@pytest.fixture(scope="module")
def r50() -> MaskFormer:
    return MaskFormer(MaskFormerConfig(backbone="r50"))


def test_a_published_checkpoint_fills_the_network(
    tmp_path: Path, r50: MaskFormer, caplog: pytest.LogCaptureFixture
) -> None:
    state = light_state("r50")
    with caplog.at_level(logging.INFO):
        weights = open_weights(saved(tmp_path / "model_final.pth", state))
    assert weights.kind is Kind.ZERO_SHOT
    assert "mapped: 412 tensors of stage one" in caplog.text
    weights.load_into(r50)
    own = r50.state_dict()
    for ours, published in (
        ("backbone.res3.0.shortcut.norm.running_mean", "backbone.res3.0.shortcut.norm.running_mean"),
        ("pixel_decoder.laterals.2.conv.weight", "sem_seg_head.pixel_decoder.adapter_3.weight"),
        ("pixel_decoder.outputs.0.norm.bias", "sem_seg_head.pixel_decoder.layer_1.norm.bias"),
        ("decoder.layers.5.cross_attn.in_proj_weight",
         "sem_seg_head.predictor.transformer.decoder.layers.5.multihead_attn.in_proj_weight"),
        ("class_head.perceptron.layers.1.bias", "sem_seg_head.predictor.class_embed.layers.1.bias"),
        ("class_head.no_object", "clip_adapter.non_object_embedding"),
    ):  # fmt: skip
        assert torch.equal(own[ours], state[published]), ours
    assert "person" in weights.trained_names
    assert "cow" not in weights.trained_names


def test_another_backbone_or_joint_width_says_what_to_set(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", light_state("r50"))
    with pytest.raises(CheckpointError, match=r"set MODEL\.MASK_FORMER\.BACKBONE r50") as caught:
        open_weights(path).load_into(MaskFormer(MaskFormerConfig(backbone="r101c")))
    assert str(path) in str(caught.value)
    wide = MaskFormer(MaskFormerConfig(backbone="r50", embedding_dim=640))
    with pytest.raises(CheckpointError, match=r"set CLIP\.MODEL ViT-B-16-quickgelu"):
        open_weights(path).load_into(wide)


def test_our_own_checkpoints_still_load_and_say_what_differs(tmp_path: Path) -> None:
    network = MaskFormer(MaskFormerConfig(**SMALL))
    facts = {"network": dict(SMALL), "vocabulary": {"names": [["cat", "kitty"], ["dog"]]}}
    write_weights(tmp_path / "own.safetensors", network.state_dict(), facts)
    weights = open_weights(tmp_path / "own.safetensors")
    assert weights.kind is Kind.OURS
    assert weights.trained_names == trained_names(facts) == ("cat", "kitty", "dog")
    other = MaskFormer(MaskFormerConfig(**SMALL))
    weights.load_into(other)
    assert torch.equal(other.query_embed.weight, network.query_embed.weight)
    with pytest.raises(CheckpointError, match=r"num_queries 6 here, 5 there: set MODEL\.MASK_FORMER\.NUM_Q"):
        weights.load_into(MaskFormer(MaskFormerConfig(**{**SMALL, "num_queries": 6})))


def test_a_file_without_an_entry_model_and_one_in_the_old_format(tmp_path: Path) -> None:
    state = light_state("r50")
    torch.save(state, tmp_path / "bare.pth")
    assert open_weights(tmp_path / "bare.pth").kind is Kind.ZERO_SHOT
    content = {"model": {"stem.conv1.weight": torch.ones(2), "res2.0.conv1.weight": torch.ones(3)}}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert open_weights(tmp_path / "old.pth").kind is Kind.BACKBONE


def test_a_torch_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "mark",))

    saved(tmp_path / "bad.pth", light_state("r50"), scheduler=Hostile())
    with pytest.raises(CheckpointError, match="is refused"):
        open_weights(tmp_path / "bad.pth")
    assert not (tmp_path / "mark").exists()


def test_damaged_missing_and_repaired_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", light_state("r50"))
    data = path.read_bytes()
    (tmp_path / "half.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        open_weights(tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        open_weights(tmp_path / "none.pth")
    head = "sem_seg_head.pixel_decoder."
    broken = {name.replace(head, f"{head}pixel_decoder."): t for name, t in light_state("r50").items()}
    saved(tmp_path / "broken.pth", broken)
    with pytest.raises(PublishedError, match="--repair"):
        open_weights(tmp_path / "broken.pth")
    assert open_weights(tmp_path / "broken.pth", repair=True).kind is Kind.ZERO_SHOT


def backbone_file(path: Path, network: nn.Module, **more: np.ndarray) -> Path:
    """As Detectron2 keeps ImageNet weights: protocol 2, no prefix, the classifier still there."""
    prefix = "backbone."
    arrays = {
        name.removeprefix(prefix): (tensor + 1).numpy()
        for name, tensor in network.state_dict().items()
        if name.startswith(prefix)
    }
    arrays |= {"stem.fc.weight": np.zeros((10, 4), np.float32), "stem.fc.bias": np.zeros(10, np.float32)}
    content = {"model": {**arrays, **more}, "__author__": "somebody", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_a_backbone_starts_a_training_and_nothing_else(
    tmp_path: Path, r50: MaskFormer, caplog: pytest.LogCaptureFixture
) -> None:
    counter = {"stem.conv1.norm.num_batches_tracked": np.array(0)}
    path = backbone_file(tmp_path / "R-50.pkl", r50, **counter)
    before = {name: tensor.clone() for name, tensor in r50.state_dict().items()}
    with caplog.at_level(logging.INFO):
        content = starting_weights(r50)(str(path))
    r50.load_state_dict(content["model"], strict=True)
    for name, tensor in r50.state_dict().items():
        assert torch.equal(tensor, before[name] + name.startswith("backbone.")), name
    for said in ("ignored: 2 (stem.fc.weight, stem.fc.bias)", "ignored: 1 (stem.conv1.norm.num_batches_",
                 "mapped: 265 tensors of the backbone", "Only the backbone starts from"):  # fmt: skip
        assert said in caplog.text
    with pytest.raises(CheckpointError, match=r"no trained network\. Train stage one from it"):
        open_weights(path).load_into(r50)


def test_a_backbone_of_another_network_or_by_halves(tmp_path: Path, r50: MaskFormer) -> None:
    path = backbone_file(tmp_path / "R-50.pkl", r50, **{"stem.conv1.bias": np.zeros(64, np.float32)})
    with pytest.raises(PublishedError, match=r"unexpected: 1 \(stem.conv1.bias\)"):
        starting_weights(r50)(str(path))
    with torch.device("meta"):
        deep = MaskFormer(MaskFormerConfig(backbone="r101c"))
    with pytest.raises(PublishedError, match=r"holds r50: .* \(MODEL\.MASK_FORMER\.BACKBONE r50\)"):
        starting_weights(deep)(str(path))


def test_a_training_starts_from_a_published_checkpoint(tmp_path: Path, r50: MaskFormer) -> None:
    path = saved(tmp_path / "m.pth", light_state("r50"))
    content = starting_weights(r50)(str(path))
    assert content["model"].keys() == r50.state_dict().keys()


def test_prompt_vectors_of_published_files(tmp_path: Path) -> None:
    whole = light_state("r101c", learned=True)
    vectors = whole["clip_adapter.prompt_learner.prefix_prompt"]
    alone = {n: t for n, t in whole.items() if n.startswith("clip_adapter.prompt_learner.")}
    for name, state in (("whole.pth", whole), ("alone.pth", alone)):
        assert torch.equal(published_prompts(saved(tmp_path / name, state)), vectors)
    region = saved(tmp_path / "voc.pth", light_state("r101c", train_classes=15, separate=True))
    assert published_prompts(region).shape == (16, 512)
    with pytest.raises(CheckpointError, match="holds no published prompt vectors"):
        published_prompts(saved(tmp_path / "none.pth", light_state("r50")))
    with pytest.raises(CheckpointError, match=r"belong into CLIP\.PROMPT"):
        open_weights(tmp_path / "alone.pth").load_into(MaskFormer(MaskFormerConfig(**SMALL)))


def test_clip_from_inside_needs_the_right_file_and_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pth", light_state("r50"))
    text = "MODEL: {{DEVICE: cpu, WEIGHTS: '{}'}}\nCLIP: {{PRETRAINED: checkpoint, MODEL: {}}}"
    with pytest.raises(ConfigError, match=r"set CLIP\.MODEL ViT-B-16-quickgelu"):
        _ = Builder(parse_config(text.format(path, "RN50-quickgelu"), "test")).clip
    with pytest.raises(ConfigError, match=r"there is no CLIP in MODEL\.WEIGHTS ''"):
        _ = Builder(parse_config(text.format("", "ViT-B-16-quickgelu"), "test")).clip


def test_learned_prompt_is_a_copy(tmp_path: Path) -> None:
    """The tensors of an opened file stay on disk; what is made of them must not write there."""
    path = saved(tmp_path / "m.pth", light_state("r101c", learned=True))
    before = path.read_bytes()
    prompt = LearnedPrompt(published_prompts(path))
    with torch.no_grad():
        prompt.vectors += 1
    assert path.read_bytes() == before
    assert not torch.equal(prompt.vectors, published_prompts(path))
