"""The per-pixel baseline as a task and as a run: losses, checkpoints, and what is refused before a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twostage import build
from twostage.builder import Builder
from twostage.config import Config, ConfigError, load_config
from twostage.data.loader import cut_masks
from twostage.data.sample import TrainBatch
from twostage.dense.per_pixel import PerPixelDense
from twostage.engine.checkpoint import CheckpointError, read_checkpoint, write_weights
from twostage.errors import TwostageError
from twostage.tasks.per_pixel import PerPixelTask
from twostage.tasks.words import trained_vocabulary
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "shapes" / "per_pixel.yaml"
SHORT = ["SOLVER.MAX_ITER=2", "SOLVER.IMS_PER_BATCH=2", "DATALOADER.NUM_WORKERS=0", "TEST.MAX_IMAGES=2"]


def make_task(words: str = "grass, sand|beach, ball") -> PerPixelTask:
    vocabulary = Vocabulary.from_words(words)
    features = torch.nn.functional.normalize(torch.randn(len(vocabulary), 8), dim=1)
    text = TextBank(features, torch.arange(len(vocabulary)), len(vocabulary))
    return PerPixelTask(PerPixelDense.tiny().network, text, vocabulary, load_config(None).solver)


def make_batch() -> TrainBatch:
    labels = torch.full((2, 32, 32), -1)
    labels[0, 4:20, 4:20], labels[0, 22:, :], labels[1, :8] = 0, 2, 1
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return cut_masks(images, labels, ["a", "b"])


def test_one_term_that_reaches_every_parameter() -> None:
    task = make_task()
    losses = task.losses(make_batch())
    assert list(losses) == ["loss_pixel"]
    losses["loss_pixel"].backward()
    assert [name for name, p in task.module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_learning_by_heart() -> None:
    """A few steps on one batch: the labelled pixels come to say their class."""
    task, batch = make_task(), make_batch()
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(40):
        loss = task.losses(batch)["loss_pixel"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first if step else last
    assert last < 0.2 * first


def test_groups_know_the_backbone() -> None:
    names = {group["name"] for group in make_task().parameter_groups()}
    assert {"backbone/weight", "backbone/norm", "head/weight", "head/norm"} == names


def test_what_a_checkpoint_says() -> None:
    task = make_task()
    state = task.state_dict()
    assert state["network"]["embedding_dim"] == 8
    assert trained_vocabulary(state, "x").names == (("grass",), ("sand", "beach"), ("ball",))
    task.load_state_dict(state, "x.pth", resuming=True)
    with pytest.raises(VocabularyError, match=r"x.pth was trained on another vocabulary .*new here: boat"):
        make_task("grass, sand|beach, boat").load_state_dict(state, "x.pth", resuming=True)
    with pytest.raises(VocabularyError, match="PerPixelTask: text of 2 classes, a vocabulary of 3"):
        PerPixelTask(
            task.module, TextBank(torch.eye(8)[:2], torch.arange(2), 2), task.vocabulary, task._solver
        )


def config(tmp_path: Path, *words: str) -> Config:
    return load_config(SHAPES, [*SHORT, f"OUTPUT_DIR={tmp_path / 'out'}", *words])


def test_trains_and_is_measured_again_from_its_file(tmp_path: Path) -> None:
    settled = config(tmp_path)
    final = build.train(settled)
    stored = read_checkpoint(final)
    assert len(stored["vocabulary"]["names"]) == 15
    again = config(tmp_path, f"MODEL.WEIGHTS={final}", "TEST.SYSTEMS=[per pixel, dense, per pixel + dense]")
    [outcome] = build.evaluate(again).values()
    assert list(outcome.metrics) == ["per pixel", "dense", "per pixel + dense"]
    assert not outcome.recall
    alone = config(tmp_path, f"MODEL.WEIGHTS={final}", "DENSE.NAME=", "PIXELS.OPTIONS.ORDER=paper")
    [outcome] = build.evaluate(alone).values()
    assert list(outcome.metrics) == ["ensemble"]
    maker = Builder(again)
    grass, boat = maker.words(Vocabulary.from_words("grass, boat")).vocabulary.seen or ()
    assert (grass, boat) == (True, False), "what was learned is in the file"
    assert torch.equal(
        maker.trained_pixels.network.state_dict()["predictor.weight"], stored["model"]["predictor.weight"]
    )


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (["PIXELS.NAME="], ConfigError, r"TASK per_pixel: .*PIXELS\.NAME is ''"),
        (["PIXELS.OPTIONS.ORDER=papr"], TwostageError, "Did you mean 'paper'"),
        (["DENSE.NAME=readot"], TwostageError, "Did you mean 'readout'"),
        (["TEST.SYSTEMS=[per pixels]"], ConfigError, "Did you mean 'per pixel'"),
        (["ENSEMBLE.NAME=geometric"], TwostageError, r"set ENSEMBLE\.NAME per_pixel"),
        (["MODEL.PER_PIXEL.MASK_DIMM=3"], ConfigError, r"MODEL\.PER_PIXEL: unknown option MASK_DIMM"),
        (["MODEL.PER_PIXEL.MASK_KERNEL=2"], ConfigError, r"MODEL\.PER_PIXEL: .*expected 1 or 3, got 2"),
    ],
)
def test_what_evaluation_would_refuse_is_refused_first(
    tmp_path: Path, words: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        build.train(config(tmp_path, *words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "takes its weights from MODEL.WEIGHTS, which is empty"),
        (["MODEL.WEIGHTS=x.pth", "PROPOSALS.NAME=maskformer"], "those of PROPOSALS.NAME maskformer here"),
    ],
)
def test_weights_have_to_be_its_own(tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        _ = Builder(config(tmp_path, *words)).trained_pixels


def test_weights_of_another_network(tmp_path: Path) -> None:
    maker = Builder(config(tmp_path, "MODEL.WEIGHTS=package:shapes"))
    with pytest.raises(
        CheckpointError, match=r"another kind of network than PerPixelNetwork, one with .*queries"
    ):
        _ = maker.trained_pixels


def test_weights_of_other_options(tmp_path: Path) -> None:
    maker = Builder(config(tmp_path))
    state = {"names": [["grass"]]}
    write_weights(
        tmp_path / "own.safetensors",
        maker.pixel_network().state_dict(),
        {"vocabulary": state, "network": {"mask_dim": 48}},
    )
    other = Builder(
        config(tmp_path, f"MODEL.WEIGHTS={tmp_path / 'own.safetensors'}", "MODEL.PER_PIXEL.MASK_DIM=32")
    )
    with pytest.raises(CheckpointError, match=r"set MODEL\.PER_PIXEL\.MASK_DIM 48"):
        _ = other.trained_pixels


def test_an_ensemble_without_anything_to_hear(tmp_path: Path) -> None:
    with pytest.raises(TwostageError, match=r"there is neither: set PIXELS\.NAME or DENSE\.NAME"):
        Builder(
            config(tmp_path, "PIXELS.NAME=", "DENSE.NAME=", "PROPOSALS.NAME=oracle", "CLASSIFIER.NAME=crops")
        ).segmenter()
