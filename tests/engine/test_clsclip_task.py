"""ClsCLIP as a task and as a run: losses, checkpoints, folds, and what is refused before a start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from twostage import build
from twostage.builder import Builder
from twostage.clip.model import ClipModel
from twostage.clsclip.config import ClsClipNetworkConfig
from twostage.clsclip.network import ClsClipNetwork
from twostage.config import Config, ConfigError, load_config
from twostage.data import catalog
from twostage.data.errors import DatasetError
from twostage.data.loader import cut_masks
from twostage.data.sample import TrainBatch
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine.checkpoint import CheckpointError, read_checkpoint, write_weights
from twostage.errors import TwostageError
from twostage.evaluation.expected import UnexpectedResultError
from twostage.networks import shipped
from twostage.runs.dry_run import dry_run
from twostage.tasks.clsclip import ClsClipTask, binary_cross_entropy
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "shapes" / "clsclip.yaml"
SHORT = ["SOLVER.MAX_ITER=2", "SOLVER.IMS_PER_BATCH=2", "TEST.MAX_IMAGES=2", "INPUT.CROP_SIZE=64"]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return ClipModel.load("twostage-mini-vit", "random", seed=0)


def make_task(clip: ClipModel, words: str = "grass, sand|beach, ball", **options: Any) -> ClsClipTask:
    vocabulary = Vocabulary.from_words(words)
    names = vocabulary.every_name
    rows = torch.randn(len(names), 128, generator=torch.Generator().manual_seed(0))
    class_of = torch.tensor([k for k, synonyms in enumerate(vocabulary.names) for _ in synonyms])
    text = TextBank(functional.normalize(rows, dim=1), class_of, len(vocabulary))
    config = load_config(None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ClsClipNetwork(
            ClsClipNetworkConfig(128, 128, 6, decoder_layers=1, decoder_heads=4, head_widths=(16,))
        )
    settings = replace(config.clsclip, **{"min_area": 20, **options})
    return ClsClipTask(network, clip, text, vocabulary, config.solver, settings)


def make_batch() -> TrainBatch:
    """Classes 0 and 2 with an unlabelled strip; class 1 and background, which is number 3."""
    labels = torch.full((2, 32, 32), -1)
    labels[0, 4:20, 4:20], labels[0, 22:, :] = 0, 2
    labels[1], labels[1, :8] = 3, 1
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return cut_masks(images, labels, ["a", "b"])


def test_binary_cross_entropy_against_a_loop() -> None:
    logits = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    target = torch.randint(-1, 2, (2, 3, 4), generator=torch.Generator().manual_seed(2))
    terms = [
        -float(logits[pair, :, y, x].log_softmax(dim=0)[target[pair, y, x]])
        for pair in range(2)
        for y in range(3)
        for x in range(4)
        if target[pair, y, x] >= 0
    ]
    assert float(binary_cross_entropy(logits, target)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert float(binary_cross_entropy(logits, torch.full_like(target, -1))) == 0.0


def test_one_class_of_the_photo_is_asked_and_background_never(clip: ClipModel) -> None:
    task, batch = make_task(clip), make_batch()
    asked = {image: {task._ask(batch, image) for _ in range(40)} for image in (0, 1)}
    assert asked == {0: {0, 2}, 1: {1}}
    assert {make_task(clip, absent=1.0)._ask(batch, 1) for _ in range(40)} == {0, 2}
    assert {make_task(clip, min_area=257)._ask(batch, 0) for _ in range(20)} == {2}, "256 pixels are too few"
    assert make_task(clip, min_area=2000)._ask(batch, 0) == -1


def test_the_loss_is_that_of_the_network_and_unlabelled_pixels_do_not_count(clip: ClipModel) -> None:
    task, batch = make_task(clip), make_batch()
    alone = batch[1:2]
    task.module.eval()
    loss = float(task.losses(alone)["loss_mask"].detach())
    pixels = (alone.images.float() / 255 - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(
        clip.std
    ).view(3, 1, 1)
    target = (alone.labels == 1).long()
    found = []
    for row in (1, 2):  # either synonym of class 1
        with torch.no_grad():
            maps = task.module(clip.visual, pixels, task._text.features[row : row + 1])
        full = functional.interpolate(maps, size=(32, 32), mode="bilinear", align_corners=False)
        found.append(float(functional.cross_entropy(full, target)))
    assert min(abs(loss - one) for one in found) < 1e-5


def test_a_batch_without_anything_to_ask(clip: ClipModel) -> None:
    task = make_task(clip, min_area=2000)
    loss = task.losses(make_batch())["loss_mask"]
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is not None for parameter in task.module.parameters())


def test_gradient_reaches_all_that_is_trained_and_nothing_else(clip: ClipModel) -> None:
    task = make_task(clip)
    task.losses(make_batch())["loss_mask"].backward()
    assert [name for name, p in task.module.named_parameters() if p.grad is None] == []
    assert all(parameter.grad is None for parameter in clip.visual.parameters())
    own = {id(p) for group in task.parameter_groups() for p in group["params"]}
    assert own == {id(p) for p in task.module.parameters()}


def test_learning_by_heart(clip: ClipModel) -> None:
    task, batch = make_task(clip, min_area=100), make_batch()[1:2]
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = task.losses(batch)["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_what_a_checkpoint_says(clip: ClipModel) -> None:
    task = make_task(clip)
    state = task.state_dict()
    assert state["clip"] == {"name": "twostage-mini-vit", "digest": clip.digest}
    assert state["network"]["blocks"] == (2, 5)
    assert not any("visual" in name for name in state["model"])
    task.load_state_dict(state, "x.pth", resuming=True)
    with pytest.raises(VocabularyError, match="trained on another vocabulary"):
        make_task(clip, "grass, sand|beach, boat").load_state_dict(state, "x.pth", resuming=True)
    other = {**state, "clip": {"name": "ViT-B-16", "digest": "0"}}
    with pytest.raises(
        CheckpointError, match=r"x\.pth was trained with ViT-B-16, .*set CLIP\.MODEL ViT-B-16"
    ):
        task.load_state_dict(other, "x.pth", resuming=False)


def config(tmp_path: Path, *words: str) -> Config:
    return load_config(SHAPES, [*SHORT, f"OUTPUT_DIR={tmp_path / 'out'}", *words])


def test_trains_resumes_and_is_measured_again(tmp_path: Path) -> None:
    whole = build.train(config(tmp_path, "SOLVER.MAX_ITER=3"))
    stored = read_checkpoint(whole)
    assert len(stored["vocabulary"]["names"]) == 15
    halves = [f"OUTPUT_DIR={tmp_path / 'halves'}", "SOLVER.CHECKPOINT_PERIOD=2", "SOLVER.MAX_ITER=3"]
    build.train(config(tmp_path, *halves))
    (tmp_path / "halves" / "model_final.pth").unlink()
    (tmp_path / "halves" / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")
    resumed = read_checkpoint(build.train(config(tmp_path, *halves), resume=True))
    for name, tensor in stored["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    found = build.evaluate(config(tmp_path), resume=True)
    again = build.evaluate(config(tmp_path, f"MODEL.WEIGHTS={whole}"))
    assert found["shapes_test"]["clsclip"].as_dict() == again["shapes_test"]["clsclip"].as_dict()
    written = json.loads((tmp_path / "out" / "inference" / "results.json").read_text(encoding="utf-8"))
    assert written["fold"]["held_out"] == ["gravel", "checkered ball", "dotted star", "mushroom", "boat"]
    assert [row["system"] for row in written["systems"]] == ["clsclip"]
    with pytest.raises(ConfigError, match=r"trained on .*, which this fold holds out"):
        build.evaluate(config(tmp_path, f"MODEL.WEIGHTS={whole}", "CLSCLIP.FOLD=[0]"))
    maker = Builder(config(tmp_path, f"MODEL.CLSCLIP_WEIGHTS={whole}"))
    words = maker.words(Vocabulary.from_words("grass, boat"))
    assert words.vocabulary.seen == (True, False)
    photo = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    [made] = maker.segmenter().segment([photo], words)  # beyond one word: a dense head like the others
    assert made.labels.shape == (50, 70)


def test_several_folds_and_their_mean(tmp_path: Path) -> None:
    folds = ["CLSCLIP.FOLD=[1, 3]", "SOLVER.MAX_ITER=1", "TEST.MAX_IMAGES=10"]
    build.train(config(tmp_path, *folds))
    out = tmp_path / "out"
    rows = json.loads((out / "folds.json").read_text(encoding="utf-8"))["systems"]
    first, second, mean = (row["FB-IoU"] for row in rows)
    assert mean == pytest.approx((first + second) / 2)
    names = read_checkpoint(out / "fold_1" / "model_final.pth")["vocabulary"]["names"]
    assert ["sand"] not in names
    assert ["grass"] in names
    before = (out / "fold_3" / "model_final.pth").stat().st_mtime_ns
    build.train(config(tmp_path, *folds), resume=True)
    assert (out / "fold_3" / "model_final.pth").stat().st_mtime_ns == before, "finished folds stay"
    found = build.evaluate(config(tmp_path, *folds), resume=True)
    assert found["shapes_test"]["clsclip"].FB_IoU == pytest.approx(mean)
    with pytest.raises(ConfigError, match="folds have weights of their own each"):
        build.evaluate(config(tmp_path, *folds))


def test_other_heads_are_measured_by_the_same_pairs(tmp_path: Path) -> None:
    words = ["DENSE.NAME=readout", "DENSE.OPTIONS.PRESET=maskclip", "CLSCLIP.THRESHOLDS=[10, 20]"]
    found = build.evaluate(config(tmp_path, *words))
    assert list(found["shapes_test"]) == ["readout maskclip > 10", "readout maskclip > 20"]
    free = build.evaluate(config(tmp_path, "DENSE.OPTIONS.INJECTION=pinv", "CLSCLIP.RULE=argmax"))
    assert list(free["shapes_test"]) == ["clsclip pinv argmax"]


def test_a_figure_that_is_missed_is_told(tmp_path: Path) -> None:
    row = "TEST.EXPECTED_RESULTS=[[shapes_val@3, clsclip pinv argmax, unseen, 100.0, 0.0]]"
    words = ["DENSE.OPTIONS.INJECTION=pinv", "CLSCLIP.RULE=argmax", "DATASETS.TEST=[shapes_val@3]", row]
    build.evaluate(config(tmp_path, *words))  # only some photos: nothing is judged
    if "clsclip_two" not in catalog.names():
        catalog.register("clsclip_two", lambda _: ShapesDataset("val", 3, 2))
    with pytest.raises(UnexpectedResultError, match="1 of 1 expected figures"):
        build.evaluate(config(tmp_path, *words, "DATASETS.TEST=[clsclip_two]", "TEST.MAX_IMAGES=0"))


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["DENSE.NAME=readout"], ConfigError, r"TASK clsclip: .*DENSE\.NAME is 'readout'"),
        (["DENSE.OPTIONS.INJECTION=pinv"], ConfigError, "injection learned"),
        (["DENSE.OPTIONS.ZOOM=true"], TwostageError, r"PROPOSALS\.NAME is empty"),
        (["CLSCLIP.FOLD=[4]"], ConfigError, r"different folds of 0\.\.3, got \[4\]"),
        (["CLSCLIP.FOLD=[1, 1]"], ConfigError, r"different folds of 0\.\.3"),
        (["CLSCLIP.FOLD=[1]", "CLSCLIP.FOLDS=3"], DatasetError, "cannot be shared evenly by 3"),
        (["CLSCLIP.CLASSES=21"], DatasetError, "the list has 20"),
        (["CLSCLIP.THRESHOLDS=[]"], TwostageError, "one or more different logits"),
        (["MODEL.CLSCLIP.DECODER_HEAD=3"], ConfigError, "unknown option DECODER_HEAD"),
        (["MODEL.CLSCLIP.DECODER_HEADS=3"], ConfigError, "3 heads cannot share"),
        (["CLIP.MODEL=twostage-mini-rn"], TwostageError, "not open_clip's VisionTransformer"),
        (
            ["TEST.EXPECTED_RESULTS=[[shapes_test, clsclip, mIuU, 1, 1]]"],
            ConfigError,
            "metric 'mIuU' is not evaluated",
        ),
    ],
)
def test_what_evaluation_would_refuse_is_refused_first(
    tmp_path: Path, words: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        build.train(config(tmp_path, *words))
    assert not (tmp_path / "out").exists()


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST is empty"):
        build.evaluate(config(tmp_path, "DATASETS.TEST=[]"))
    with pytest.raises(ConfigError, match=r"TEST\.RESUME: one-word segmentation keeps no counts"):
        build.evaluate(config(tmp_path, "TEST.RESUME=True"))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        build.evaluate(config(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "which is empty too"),
        (["MODEL.WEIGHTS=x.pth", "PROPOSALS.NAME=maskformer"], "those of PROPOSALS.NAME maskformer here"),
    ],
)
def test_weights_have_to_be_its_own(tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        _ = Builder(config(tmp_path, *words)).trained_clsclip


def test_weights_of_another_kind_or_other_options(tmp_path: Path) -> None:
    stranger = Builder(config(tmp_path))
    other = Builder(config(tmp_path, f"MODEL.CLSCLIP_WEIGHTS={shipped('package:shapes')}"))
    with pytest.raises(CheckpointError, match=r"another kind of network than ClsClipNetwork, .*queries"):
        _ = other.trained_clsclip
    write_weights(
        tmp_path / "own.safetensors",
        stranger.clsclip_network().state_dict(),
        {"vocabulary": {"names": [["grass"]]}, "network": {"decoder_heads": 4, "decoder_layers": 2}},
    )
    words = [f"MODEL.WEIGHTS={tmp_path / 'own.safetensors'}", "MODEL.CLSCLIP.DECODER_LAYERS=1"]
    with pytest.raises(CheckpointError, match=r"set MODEL\.CLSCLIP\.DECODER_LAYERS 2"):
        _ = Builder(config(tmp_path, *words)).trained_clsclip


def test_a_dry_run_tells_of_folds(tmp_path: Path) -> None:
    plan = dry_run(config(tmp_path, "CLSCLIP.FOLD=[0, 2]"))
    assert plan.wrong == []
    assert plan.parameters["ClsCLIP"] > 100_000
    text = plan.format()
    assert "shapes_test, fold 2: 15 classes learned, held out: water, striped ball, dotted star, fish" in text
    assert "no fold" not in text
    assert "different folds" in dry_run(config(tmp_path, "CLSCLIP.FOLD=[7]")).wrong[0]
    assert "VisionTransformer" in dry_run(config(tmp_path, "CLIP.MODEL=twostage-mini-rn")).wrong[0]
