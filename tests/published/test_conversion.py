"""tools/convert_checkpoint.py: every part in either form, whole or not at all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_files import light_state
from torch import Tensor

from twostage.checkpoints import open_weights
from twostage.clip.prompt_file import load_prompt
from twostage.conversion import Conversion, convert, examine
from twostage.engine.checkpoint import CheckpointError, read_checkpoint, write_weights
from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer
from twostage.published.errors import PublishedError
from twostage.published.recognise import Kind

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
Run = Callable[..., int]


@pytest.fixture(scope="module")
def run() -> Run:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *words: module.main([str(word) for word in words])


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return light_state("r50", learned=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("published") / "model_final.pth"
    torch.save({"model": state, "optimizer": {}, "scheduler": {}, "iteration": 1}, path)
    return path


def test_report_alone_writes_nothing(run: Run, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, "--report") == 0
    said = capsys.readouterr().out
    assert "mapped: 412 tensors of stage one" in said
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.slow
def test_stage_one_there_and_back(
    run: Run, source: Path, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through both forms on disk: all 722 tensors come back, bit for bit."""
    ours, clip, prompt, back = (
        tmp_path / name for name in ("one.safetensors", "clip.safetensors", "prompt.safetensors", "back.pth")
    )
    assert run(source, ours) == 0
    assert run(source, clip, "--what", "clip") == 0
    assert run(source, prompt, "--what", "prompts") == 0
    assert "ignored: 1 (criterion.empty_weight)" in capsys.readouterr().out
    weights = open_weights(ours)
    assert weights.kind is Kind.OURS
    assert len(weights.trained_names) == 156
    assert (
        MaskFormerConfig(**{**weights.content["network"], "mean": (0, 0, 0), "std": (1, 1, 1)}).backbone
        == "r50"
    )
    assert len(read_checkpoint(clip)["model"]) == 302
    vectors, facts = load_prompt(prompt)
    assert torch.equal(vectors.vectors, state["clip_adapter.prompt_learner.prefix_prompt"])
    assert facts.clip == "ViT-B-16-quickgelu"
    assert len(facts.names) == 156
    assert run(ours, back, "--to", "published", "--clip", clip, "--prompt", prompt) == 0
    again = read_checkpoint(back)["model"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert again._metadata["sem_seg_head"]["version"] >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        p.name for p in (ours, clip, prompt, back)
    )


def test_repair(
    run: Run, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = "sem_seg_head.pixel_decoder."
    torch.save(
        {"model": {n.replace(head, f"{head}pixel_decoder."): t for n, t in state.items()}}, tmp_path / "b.pth"
    )
    assert run(tmp_path / "b.pth", tmp_path / "out.safetensors") == 1
    assert "--repair" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert run(tmp_path / "b.pth", tmp_path / "out.safetensors", "--repair") == 0
    assert "pixel_decoder.outputs.3.conv.weight" in read_checkpoint(tmp_path / "out.safetensors")["model"]
    assert run(tmp_path / "b.pth", "--report", "--repair") == 0


def test_an_existing_file_survives_a_refusal(run: Run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("precious")
    model = read_checkpoint(source)["model"]
    model.pop("backbone.stem.conv1.weight")
    torch.save({"model": model}, tmp_path / "less.pth")
    assert run(tmp_path / "less.pth", out) == 1
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["less.pth", "out.safetensors"]


@pytest.mark.parametrize(
    ("conversion", "name", "words"),
    [
        ({}, "out.pth", "end in .safetensors"),
        ({"to": "published"}, "out.safetensors", r"end in \.pth"),
        ({"what": "clips"}, "out.safetensors", "Did you mean 'clip'"),
        ({"to": "mars"}, "out.safetensors", "none of twostage, published"),
        ({"what": "clip", "to": "published"}, "out.pth", "begins with stage one"),
    ],
)
def test_wrong_wishes(
    source: Path, tmp_path: Path, conversion: dict[str, str], name: str, words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        convert(source, tmp_path / name, Conversion(**conversion))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    plain = tmp_path / "plain.pth"
    torch.save({"model": light_state("r50")}, plain)
    with pytest.raises(CheckpointError, match="holds no prompt vectors"):
        convert(plain, tmp_path / "p.safetensors", Conversion("prompts"))
    alone = {n: t for n, t in light_state("r50", learned=True).items() if "prompt_learner" in n}
    torch.save({"model": alone}, tmp_path / "alone.pth")
    for what, words in (("stage_one", "stage one's network"), ("clip", "CLIP")):
        with pytest.raises(CheckpointError, match=f"published prompts alone and holds no {words}"):
            convert(tmp_path / "alone.pth", tmp_path / "o.safetensors", Conversion(what))
    separate = tmp_path / "voc.pth"
    torch.save({"model": light_state("r101c", train_classes=15, separate=True)}, separate)
    with pytest.raises(CheckpointError, match="an adapter for each stage"):
        convert(separate, tmp_path / "o.pth", Conversion(to="published"))


def test_a_network_without_a_published_form(tmp_path: Path) -> None:
    small = MaskFormer(
        MaskFormerConfig(
            backbone="small", small_widths=(8, 8, 16, 16), pixel_dim=16, mask_dim=16, hidden_dim=16,
            num_queries=5, decoder_layers=1, num_heads=2, feedforward_dim=32, embedding_dim=8,
            class_hidden_dim=16,
        )
    )  # fmt: skip
    path = tmp_path / "small.safetensors"
    write_weights(path, small.state_dict(), {"vocabulary": {"names": [["cat"]]}})
    assert examine(path).what == Kind.OURS.value
    with pytest.raises(PublishedError):
        convert(path, tmp_path / "o.pth", Conversion(to="published"))
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]


def test_usage_errors_of_the_program(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.pth", tmp_path / "o.safetensors") == 1
    assert "There is no checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(tmp_path / "none.pth")
