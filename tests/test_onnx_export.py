"""Networks as ONNX files: what is computed, what is stored, what is refused; the shipped system."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_parts import write_photo
from torch import Tensor
from torch.nn import functional

from twostage import zoo
from twostage.builder import Builder
from twostage.config import Config, load_config
from twostage.data.shapes.classes import vocabulary as drawn_words
from twostage.data.shapes.dataset import ShapesDataset
from twostage.export import runtime
from twostage.export.graphs import stage_one_graph
from twostage.export.manifest import STAGE_ONE, ExportError, Manifest, read_manifest, write_manifest
from twostage.export.networks import by_class
from twostage.export.parts import exportable
from twostage.export.words import StoredWords, read_words, write_words
from twostage.maskformer import backbone, resnet
from twostage.maskformer.lean import make_lean
from twostage.maskformer.network import MaskFormer
from twostage.predict import System
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary

onnx = pytest.importorskip("onnx", reason="needs the extra twostage[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra twostage[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra twostage[onnx]")


def bank(classes: tuple[int, ...], dim: int = 8) -> TextBank:
    """A class for each number, with so many names; rows in mixed order."""
    class_of = torch.tensor([k for k, count in enumerate(classes) for _ in range(count)])
    generator = torch.Generator().manual_seed(len(class_of))
    rows = functional.normalize(torch.randn(len(class_of), dim, generator=generator), dim=1)
    order = torch.randperm(len(class_of), generator=generator)
    return TextBank(rows[order], class_of[order], len(classes))


def network(**options: Any) -> MaskFormer:
    tiny = MaskFormerProposals.tiny().network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return MaskFormer(dataclasses.replace(tiny.config, **options)).eval()


def test_rows_of_a_class_stand_together() -> None:
    text = bank((1, 3, 2))
    grouped = by_class(text)
    assert grouped.shape == (3, 3, 8)
    for k in range(3):
        wanted = {tuple(row.tolist()) for row in text.features[text.class_of == k]}
        assert {tuple(row.tolist()) for row in grouped[k]} == wanted


@pytest.mark.parametrize("classes", [(1,), (1, 3, 2), (2, 2)])
def test_the_text_input_stands_for_the_bank(classes: tuple[int, ...]) -> None:
    net, text = network(logit_scale=30.0), bank(classes)
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    graph = stage_one_graph(net, names_masks=True)
    with torch.no_grad():
        masks, embeddings, logits = graph(pixels, by_class(text))
        seen = net.look(pixels)
        wanted = net.class_logits(seen.embeddings[-1], text)
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(masks, seen.mask_logits[-1])
    torch.testing.assert_close(embeddings, seen.embeddings[-1])


def test_graphs_suit_the_class_head() -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    linear = network(class_head="linear", num_classes=4)
    graph = stage_one_graph(linear, names_masks=True)
    with torch.no_grad():
        _, embeddings, classes = graph(pixels)
        torch.testing.assert_close(classes, linear.class_logits(embeddings))
    assert stage_one_graph(linear, names_masks=False).outputs == ("masks", "embeddings")


# What a file asks for


def model_with(tensor: Any, where: str) -> Any:
    """A model that keeps this tensor as an initialiser, in a constant, in a branch, or in a function."""
    helper, value = onnx.helper, onnx.helper.make_tensor_value_info
    result = value("y", onnx.TensorProto.FLOAT, [4])
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    branch = helper.make_graph([constant], "branch", [], [result])
    condition = value("c", onnx.TensorProto.BOOL, [])
    if where == "initialiser":
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [result], [tensor])
    elif where == "constant":
        graph = helper.make_graph([constant], "g", [], [result])
    else:
        choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        graph = helper.make_graph([choice], "g", [condition], [result])
    functions = []
    if where == "function":
        graph = helper.make_graph([helper.make_node("F", [], ["y"], domain="own")], "g", [], [result])
        imports = [helper.make_opsetid("", 18)]
        functions = [helper.make_function("own", "F", [], ["y"], [constant], imports)]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions)


def outside(location: str) -> Any:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("where", ["initialiser", "constant", "branch", "function"])
@pytest.mark.parametrize("location", ["../secret.bin", "/secret.bin", "below/secret.bin", "..", ""])
def test_weights_stay_in_the_folder(tmp_path: Path, where: str, location: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(outside(location), where).SerializeToString())
    with pytest.raises(ExportError, match="is no plain name"):
        runtime.describe(path)


def test_weights_beside_the_file_have_to_be_listed(tmp_path: Path) -> None:
    inside, path = tmp_path / "folder", tmp_path / "folder" / "m.onnx"
    inside.mkdir()
    path.write_bytes(model_with(outside("w.bin"), "initialiser").SerializeToString())
    (inside / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert runtime.describe(path).beside == ("w.bin",)
    cpu = torch.device("cpu")
    with pytest.raises(ExportError, match=r"asks for w\.bin, which the manifest does not list"):
        runtime.Session(path, {}, cpu)
    session = runtime.Session(path, {"w.bin": "digest"}, cpu)
    assert session.run()["y"].tolist() == [0, 1, 2, 3]
    (inside / "w.bin").rename(tmp_path / "elsewhere.bin")
    os.symlink(tmp_path / "elsewhere.bin", inside / "w.bin")
    with pytest.raises(ExportError, match="leads out of its folder"):
        runtime.describe(path)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xff\xff no protobuf")
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        runtime.describe(path)


# The manifest


STAGE = {
    "says": "text",
    "mean": [123.0, 116, 103],
    "std": [58.0, 57, 57],
    "size_divisibility": 32,
    "embedding_dim": 8,
    "num_queries": 5,
    "logit_scale": 100,
}


def test_manifest_round_trip_and_damage(tmp_path: Path) -> None:
    digest = "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"
    (tmp_path / "a.bin").write_bytes(b"hello world")
    made = Manifest("VERSION: 1\n", 20, ("cat",), None, None, None, {}, {}, {"a.bin": digest})
    write_manifest(tmp_path, made)
    assert read_manifest(tmp_path) == made

    def rewrite(**changes: Any) -> None:
        content = json.loads((tmp_path / "manifest.json").read_text())
        (tmp_path / "manifest.json").write_text(json.dumps({**content, **changes}))

    for changes, words in (
        ({"files": {"../a.bin": digest}}, "no plain name"),
        ({"files": {"b.bin": digest}}, r"incomplete: b\.bin is missing"),
        ({"files": {"a.bin": digest[::-1]}}, r"a\.bin: its sha256 is b94d27"),
        ({"stage_one": {"says": "text"}}, "is damaged"),
        ({"stage_one": {**STAGE, "std": [1, "x", 2]}}, "is damaged .*expected 3 numbers"),
        ({"stage_one": {**STAGE, "says": "?"}}, "is damaged .*says is"),
        ({"stage_one": STAGE}, r"speaks of stage_one\.onnx, but does not list it"),
        ({"words": {"classes": [["a"]], "logit_scale": 1}}, r"speaks of words\.npz"),
        ({"files": 3}, "is damaged"),
        ({"version": 2}, "expected version 1, got 2"),
        ({"format": "other"}, "is no manifest"),
    ):
        write_manifest(tmp_path, made)
        rewrite(**changes)
        with pytest.raises(ExportError, match=words):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(ExportError, match="is no manifest"):
        read_manifest(tmp_path)
    with pytest.raises(ExportError, match="holds no manifest"):
        read_manifest(tmp_path / "nowhere")


# Words


def test_stored_words(tmp_path: Path) -> None:
    rows = functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    path = tmp_path / "words.npz"
    write_words(path, StoredWords(("cat", "kitty", "dög"), rows, rows.flip(0), 50.0))
    found = read_words(path, 50.0)
    assert found.names == ("cat", "kitty", "dög")
    asked = Vocabulary((("dög",), ("cat", "kitty")))
    words = found.words(asked, torch.device("cpu"))
    assert torch.equal(words.text.features, rows[[2, 0, 1]])
    assert words.text.class_of.tolist() == [0, 1, 1]
    assert words.text.logit_scale == 50.0
    assert words.stage_one is not None
    assert torch.equal(words.stage_one.features, rows.flip(0)[[2, 0, 1]])
    assert found.missing(Vocabulary((("cat", "lynx"), ("bear",)))) == ["lynx", "bear"]


@pytest.mark.parametrize(
    "arrays",
    [
        {"names": np.array(["a"])},
        {"names": np.array(["a"]), "crops": np.zeros((2, 4), np.float32)},
        {"names": np.array(["a"], dtype=object), "crops": np.zeros((1, 4), np.float32)},
    ],
)
def test_damaged_words(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "words.npz", **arrays)
    with pytest.raises(ExportError, match="cannot be read as text features"):
        read_words(tmp_path / "words.npz", 100.0)


# Which parts


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["CLASSIFIER.NAME=pooled"], "covers crops only"),
        (["PROPOSALS.NAME=sam", "CLASSIFIER.NAME="], "nothing to export"),
        (["PROPOSALS.NAME="], "without masks there are no crops"),
    ],
)
def test_what_cannot_be_exported(overrides: list[str], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        exportable(load_config(None, overrides))


def test_dense_heads_are_left_out_and_said() -> None:
    config, notes = exportable(
        load_config(
            zoo.path("shapes"),
            [
                "ENSEMBLE.OPTIONS.USE=[regions,dense]",
                "PROPOSALS.NAME=contours",
                "CLASSIFIER.OPTIONS.SKIP_FILLED=true",
            ],
        )
    )
    assert (config.dense.name, config.pixels.name) == ("", "")
    assert config.ensemble.options["uncovered"] == "argmax"
    assert config.ensemble.options["use"] == ["regions"]
    assert any("DENSE.NAME readout is left out" in note for note in notes)
    assert any("PROPOSALS.NAME contours is not exported" in note for note in notes)
    assert config.classifier.options == {}
    assert any("SKIP_FILLED is off" in note for note in notes)
    assert exportable(config)[0] == config


# The shipped system


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """What an export of the embedded world runs, and its folder."""
    from twostage.export.write import export

    folder = tmp_path_factory.mktemp("shapes")
    config = load_config(zoo.path("shapes"), ["MODEL.DEVICE=cpu", "MODEL.DTYPE=fp32"])
    export(config, folder, classes=drawn_words(), checked=False)
    return exportable(config)[0], folder


@pytest.mark.slow
def test_label_maps_of_the_shipped_system(shipped: tuple[Config, Path]) -> None:
    from twostage.export.deployed import open_folder

    config, folder = shipped
    system, words = open_folder(folder)
    assert words.names == drawn_words().names
    reference, scenes = System(config), ShapesDataset("test", length=4)
    same = total = 0
    for index in range(4):
        image = scenes[index].image[:, : 100 + 9 * index, : 140 - 7 * index]
        wanted = reference.segment(image, drawn_words()).labels
        found = system.segment(image, words).labels
        assert found.shape == wanted.shape
        same, total = same + int((found == wanted).sum()), total + wanted.numel()
    print(f"equal labels: {same / total:.5f}")
    assert same / total >= 0.999


@pytest.mark.slow
def test_stage_one_of_the_shipped_system(shipped: tuple[Config, Path]) -> None:
    """The proposals themselves, at sizes and with words that the export never saw."""
    from twostage.export.deployed import Deployed

    config, folder = shipped
    found: Any = Deployed(config, folder, read_manifest(folder)).proposals()
    wanted: Any = Builder(config).proposals()
    generator = torch.Generator().manual_seed(1)
    for size_hw, classes in (((31, 20), (1,)), ((97, 225), (1, 4, 2)), ((160, 64), (1,) * 50)):
        image = torch.randint(0, 256, (3, *size_hw), generator=generator, dtype=torch.uint8)
        text = bank(classes, 128)
        [one], [other] = found.propose([image], text), wanted.propose([image], text)
        close(one.masks, other.masks)
        close(one.scores, other.scores)
        close(one.embeddings, other.embeddings)
        close(one.logits.logits, other.logits.logits)
        close(one.logits.no_object, other.logits.no_object)
    [one], [other] = found.propose([image]), wanted.propose([image])
    assert one.logits is None
    close(one.scores, other.scores)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_the_file_has_open_sizes(shipped: tuple[Config, Path]) -> None:
    facts = runtime.describe(shipped[1] / STAGE_ONE)
    assert facts.inputs == {"pixels": "(1, 3, 32*rows, 32*columns)", "text": "(classes, names, 128)"}
    assert facts.outputs["classes"] == "(1, 24, classes + 1)"
    assert facts.beside == ()


def test_text_of_another_width_is_refused(shipped: tuple[Config, Path]) -> None:
    from twostage.export.deployed import Deployed

    config, folder = shipped
    found: Any = Deployed(config, folder, read_manifest(folder)).proposals()
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ExportError, match="128 wide, this one has 8 columns"):
        found.propose([image], bank((1, 1)))


def test_segment_runs_the_folder(
    shipped: tuple[Config, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from twostage.cli import main
    from twostage.export.deployed import open_folder

    config, folder = shipped
    write_photo(tmp_path / "photo.png", (50, 70))
    out = ["-o", str(tmp_path / "out")]
    assert main(["segment", str(tmp_path / "photo.png"), "--onnx", str(folder), *out]) == 0
    assert (tmp_path / "out" / "photo_labels.png").is_file()
    assert "1 of 1 photos written" in capsys.readouterr().out
    system, _ = open_folder(folder, "gravel, moon, boat, sand", ["PROPOSALS.OPTIONS.MIN_SCORE=0.3"])
    words = system.words("gravel, moon, boat, sand")
    assert words.vocabulary.seen == (False, False, False, True), "stage one's words are known by name"
    wanted = System(config).words("gravel, moon, boat, sand")
    torch.testing.assert_close(words.text.features, wanted.text.features)


@pytest.mark.skipif("TWOSTAGE_EXPORT_ALL" not in os.environ, reason="ten seconds each: TWOSTAGE_EXPORT_ALL=1")
@pytest.mark.parametrize("stem", [resnet.BasicStem, resnet.DeepStem])
@pytest.mark.parametrize("masked", [False, True])
def test_residual_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stem: Any, masked: bool) -> None:
    """r50 and r101c in short, norms folded as in a trained network, with either memory."""
    from twostage.export.check import compare_stage_one
    from twostage.export.graphs import write_stage_one

    monkeypatch.setitem(backbone.VARIANTS, "r50", resnet.Variant((1, 1, 1, 2), stem, (1, 2)))
    memory = "multi" if masked else "res5"
    net = make_lean(network(backbone="r50", memory=memory, masked_attention=masked, pooled_class=masked))
    graph = stage_one_graph(net, names_masks=True)
    assert write_stage_one(graph, tmp_path / STAGE_ONE, None) >= 18
    empty = Manifest("", 18, (), None, None, None, {}, {}, {})
    findings = list(compare_stage_one(graph, tmp_path, empty))
    assert len(findings) == 6
    assert all(finding.good for finding in findings), [str(finding) for finding in findings]
