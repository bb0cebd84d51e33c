"""Self-training on a few drawn scenes with a tiny network: steps, leaks, resuming, refusals, the report."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from twostage import build
from twostage.clip.model import ClipModel
from twostage.config import Config, ConfigError, load_config
from twostage.data import catalog
from twostage.data.pseudo import PseudoLabelled, evenly, labelled
from twostage.data.sample import Sample
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine import distributed
from twostage.engine.checkpoint import read_checkpoint
from twostage.engine.signals import TrainingInterrupted
from twostage.errors import TwostageError
from twostage.published.recognise import Kind
from twostage.registry import ComponentError
from twostage.runs import evaluation, proposals, pseudo_labels, self_training, self_training_checks
from twostage.runs.manifest import StaleError
from twostage.runs.self_training_checks import is_teacher
from twostage.types import Segmentation

PHOTOS = 5
UNSEEN = ["gravel", "checkered ball", "dotted star", "mushroom", "boat"]
RUN = f"""
TASK: self_training
MODEL:
  DEVICE: cpu
  MASK_FORMER: {{BACKBONE: small, SMALL_WIDTHS: [8, 8, 16, 16], PIXEL_DIM: 16, MASK_DIM: 16, HIDDEN_DIM: 16,
    NUM_QUERIES: 5, DECODER_LAYERS: 1, NUM_HEADS: 2, FEEDFORWARD_DIM: 32, CLASS_HIDDEN_DIM: 16,
    DROPOUT: 0.0}}
CLIP: {{MODEL: twostage-mini-rn, PRETRAINED: random, TEMPLATES: single}}
PROPOSALS: {{NAME: maskformer}}
CLASSIFIER: {{NAME: "tiny_parts:Colours"}}
DATASETS: {{TRAIN: [shapes_train]}}
INPUT: {{MIN_SIZE_TRAIN: [64], CROP_SIZE: 64, COLOR_JITTER: false, MIN_SIZE_TEST: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 3, CHECKPOINT_PERIOD: 0, BASE_LR: 0.01}}
SELF_TRAINING: {{MAX_IMAGES: {PHOTOS}}}
TEST: {{MAX_IMAGES: 1, OVERLAYS: 0, EVAL_PERIOD: 0, SYSTEMS: [stage one, ensemble]}}
"""


MEASURED = "DATASETS.TEST=shapes_val"


@pytest.fixture(scope="module", autouse=True)
def one_clip() -> Iterator[None]:
    """Each step loads CLIP anew; here once is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipModel, "load", functools.cache(ClipModel.load))
        yield


def config(folder: Path, *overrides: str) -> Config:
    (folder / "run.yaml").write_text(RUN)
    return load_config(folder / "run.yaml", ["OUTPUT_DIR", str(folder / "out"), *overrides])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    build.train(config(folder, MEASURED))
    return folder / "out"


def ages(folder: Path) -> dict[str, int]:
    """When each result was written last; logs of training and pictures aside."""
    kept = [path for pattern in ("*.png", "*.pth") for path in folder.rglob(pattern)]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in kept}


def maps(folder: Path) -> dict[str, bytes]:
    """The label maps of a run, by file name."""
    return {path.name: path.read_bytes() for path in sorted((folder / "labels/maps").iterdir())}


def weights(folder: Path, step: str = "student") -> dict[str, Tensor]:
    """The final weights of a step."""
    found: dict[str, Tensor] = read_checkpoint(folder / step / "model_final.pth")["model"]
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def test_all_steps(whole: Path) -> None:
    assert len(maps(whole)) == PHOTOS
    content = read_checkpoint(whole / "student/model_final.pth")
    assert len(content["vocabulary"]["names"]) == 20
    assert content["vocabulary"]["pseudo"] == UNSEEN
    teacher = read_checkpoint(whole / "teacher/model_final.pth")["vocabulary"]
    assert len(teacher["names"]) == 15
    assert "pseudo" not in teacher
    for step in ("teacher", "student"):
        assert (whole / step / "inference/results.json").is_file()


def test_the_labels_keep_what_was_seen_and_name_the_rest_unseen(whole: Path) -> None:
    scenes = ShapesDataset("train")
    data = PseudoLabelled(scenes, whole / "labels/maps", evenly(len(scenes), PHOTOS))
    seen = torch.tensor(scenes.vocabulary.seen)
    for index in range(PHOTOS):
        sample, truth = data.with_truth(index)
        assert truth is not None
        assert sample.labels is not None
        kept = seen[truth.long()] & (truth >= 0)
        assert torch.equal(sample.labels[kept], truth[kept])
        assert not seen[sample.labels[~kept].long()].any()
        assert (sample.labels >= 0).all()


def test_the_report(whole: Path) -> None:
    content = json.loads((whole / "self_training.json").read_text())
    names = [row["system"] for row in content["systems"]]
    assert names == ["stage one: teacher", "stage one: student", "ensemble: teacher", "ensemble: student"]
    stored = json.loads((whole / "teacher/inference/results.json").read_text())
    assert content["systems"][0]["mIoU"] == stored["systems"][0]["mIoU"]
    [labels] = content["pseudo_labels"]
    pixels = sum(row["kept"] + row["filled"] for row in labels["classes"]) + labels["void"]
    scenes = ShapesDataset("train")
    truth = [scenes[index].labels for index in evenly(len(scenes), PHOTOS)]
    assert pixels == sum(t.numel() for t in truth if t is not None)
    for k, row in enumerate(labels["classes"]):
        here = sum(int((t == k).sum()) for t in truth if t is not None)
        assert (row["kept"], row["true"]) == ((here, 0) if row["seen"] else (0, here))
        assert row["right"] <= min(row["filled"], row["true"])
    text = (whole / "self_training.md").read_text()
    assert "ensemble: student" in text
    assert "had no part in labels, training or choices" in text


def test_a_finished_run_is_not_done_again(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = ages(whole)

    def never(*given: Any) -> Any:
        raise AssertionError("measured or labelled again")

    monkeypatch.setattr(evaluation, "measure", never)
    monkeypatch.setattr(pseudo_labels._Labeller, "of", never)
    assert (
        build.train(config(tmp_path, MEASURED, f"OUTPUT_DIR={whole}"), resume=True)
        == whole / "student/model_final.pth"
    )
    assert ages(whole) == before


class Scrambled(ShapesDataset):
    """The training scenes with other ground truth in place of the unseen classes."""

    def __init__(self, name: str) -> None:
        super().__init__("train")
        self.name = name

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        assert sample.labels is not None
        hidden = ~torch.tensor(self.vocabulary.seen)[sample.labels.long()]
        chance = torch.Generator().manual_seed(index)
        choices = torch.tensor([-1, *(self.vocabulary.index(name) for name in UNSEEN)])
        other = choices[torch.randint(len(choices), sample.labels.shape, generator=chance)]
        return replace(sample, labels=torch.where(hidden, other.int(), sample.labels))


def test_unseen_ground_truth_cannot_leak(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Teacher, labels and student are the same, bit for bit, whatever the unseen classes' labels say."""
    monkeypatch.setitem(catalog._registered, "scrambled", lambda root: Scrambled("scrambled"))
    build.train(config(tmp_path, "DATASETS.TRAIN", "scrambled"))
    assert maps(tmp_path / "out") == maps(whole)
    for step in ("teacher", "student"):
        assert same(weights(tmp_path / "out", step), weights(whole, step))


class Stop(Exception):
    """The machine goes down."""


@pytest.mark.parametrize("call", [1, 2], ids=["teacher", "student"])
def test_training_goes_on_where_it_stopped(
    call: int, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped after one update of the teacher, or of the student."""
    calls, losses = 0, proposals.ProposalTask.losses

    def failing(task: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 + 3 * (call - 1):
            raise Stop
        return losses(task, batch)

    run = config(tmp_path, "SOLVER.CHECKPOINT_PERIOD=1")
    with monkeypatch.context() as patch:
        patch.setattr(proposals.ProposalTask, "losses", failing)
        with pytest.raises(Stop):
            build.train(run)
    before = ages(tmp_path / "out")
    assert len([name for name in before if name.endswith("model_0000000.pth")]) == call
    build.train(run, resume=True)
    after = ages(tmp_path / "out")
    assert {name: after[name] for name in before if name in after} == before, "nothing was made twice"
    assert maps(tmp_path / "out") == maps(whole)
    assert same(weights(tmp_path / "out"), weights(whole))


def test_labelling_goes_on_where_it_stopped(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A signal after the second photo: it is finished, the others follow on resuming."""
    done, label = 0, pseudo_labels._Labeller.label

    def interrupted(labeller: Any, sample: Sample) -> Tensor:
        nonlocal done
        done += 1
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return label(labeller, sample)

    run = config(tmp_path, f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}")
    with monkeypatch.context() as patch:
        patch.setattr(pseudo_labels._Labeller, "label", interrupted)
        with pytest.raises(TrainingInterrupted, match=r"2 photos more are labelled.*--resume") as caught:
            build.train(run)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    before = ages(tmp_path / "out")
    assert len(labelled(tmp_path / "out/labels/maps")) == 2
    build.train(run, resume=True)
    after = ages(tmp_path / "out")
    assert {name: after[name] for name in before if name in after} == before
    assert maps(tmp_path / "out") == maps(whole)
    assert same(weights(tmp_path / "out"), weights(whole))


def test_two_processes_share_the_photos(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = config(tmp_path, f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}")
    scenes = ShapesDataset("train")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, expected in ((1, 2), (0, PHOTOS)):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        pseudo_labels.label_photos(run, scenes, evenly(len(scenes), PHOTOS), tmp_path / "labels/maps")
        assert len(labelled(tmp_path / "labels/maps")) == expected
    assert maps(tmp_path) == maps(whole)


def test_a_given_teacher_is_not_trained(whole: Path, tmp_path: Path) -> None:
    given = whole / "teacher/model_final.pth"
    out = build.train(config(tmp_path, f"MODEL.WEIGHTS={given}", "SELF_TRAINING.START", "teacher", MEASURED))
    assert not (tmp_path / "out/teacher/model_final.pth").exists()
    assert (tmp_path / "out/teacher/inference/results.json").is_file()
    assert maps(tmp_path / "out") == maps(whole)
    assert not same(read_checkpoint(out)["model"], weights(whole)), "it started from the teacher"


@pytest.mark.parametrize("start", ["scratch", "teacher", "file"])
def test_what_the_student_starts_from(
    start: str, whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A backbone in MODEL.WEIGHTS is no teacher: one is trained from it, and so is a student from scratch."""
    backbone = tmp_path / "R-0.pth"
    torch.save(
        {"model": {"stem.conv1.weight": torch.ones(1), "res2.0.conv1.weight": torch.ones(1)}}, backbone
    )
    file = whole / "student/model_final.pth"
    learn, started = proposals.learn, []

    def recording(data: Any, *given: Any, **named: Any) -> Path:
        started.append(data.config.model.weights)
        config = replace(data.config, model=replace(data.config.model, weights=""))
        return learn(replace(data, config=config), *given, **named)

    monkeypatch.setattr(proposals, "learn", recording)
    run = config(tmp_path, f"MODEL.WEIGHTS={backbone}")
    run = replace(
        run, self_training=replace(run.self_training, start=str(file) if start == "file" else start)
    )
    build.train(run)
    expected = {"scratch": backbone, "teacher": tmp_path / "out/teacher/model_final.pth", "file": file}
    assert started == [str(backbone), str(expected[start])]


def test_a_published_teacher_keeps_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CLIP and prompts inside a published checkpoint would be lost with the student's own."""
    inside = SimpleNamespace(prompt=torch.ones(1), region_prompt=None, report=SimpleNamespace(where="x.pth"))
    published = SimpleNamespace(kind=Kind.ZERO_SHOT, published=inside)
    monkeypatch.setattr(self_training_checks, "open_weights", lambda path: published)
    with pytest.raises(ConfigError, match=r"openai for the released checkpoints"):
        is_teacher(config(tmp_path, "MODEL.WEIGHTS=x.pth", "CLIP.PRETRAINED=checkpoint"))
    with pytest.raises(ConfigError, match=r"Name the file in CLIP\.PROMPT"):
        is_teacher(config(tmp_path, "MODEL.WEIGHTS=x.pth"))
    assert is_teacher(config(tmp_path, "MODEL.WEIGHTS=x.pth", "CLIP.PROMPT=x.pth"))


def test_rounds_and_options_of_the_student(whole: Path, tmp_path: Path) -> None:
    options = ("SELF_TRAINING.ROUNDS=2", "SELF_TRAINING.MAX_ITER=1", "SELF_TRAINING.BASE_LR=0.5")
    given = f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}"
    run = config(tmp_path, MEASURED, given, *options, "SELF_TRAINING.ENSEMBLE", "{WEIGHT: 0.25}")
    out = tmp_path / "out"
    assert build.train(run) == out / "student_2/model_final.pth"
    assert len(list((out / "labels_2/maps").iterdir())) == PHOTOS
    content = json.loads((out / "self_training.json").read_text())
    assert [row["step"] for row in content["systems"][:3]] == ["teacher", "student", "student_2"]
    assert [labels["round"] for labels in content["pseudo_labels"]] == [1, 2]
    stored = [
        json.loads((out / step / "inference/results.json").read_text()) for step in ("teacher", "student")
    ]
    used = [one["provenance"]["config"]["ensemble"]["options"] for one in stored]
    assert used == [{}, {"weight": 0.25}]
    trained = read_checkpoint(out / "student/model_final.pth")
    assert trained["iteration"] == 0
    assert "BASE_LR: 0.5" in trained["config"]
    again = self_training.finished(run)
    assert again.output_dir == str(out / "student_2")
    assert again.ensemble.options == {"weight": 0.25}


def test_measuring_the_student_again(whole: Path, tmp_path: Path) -> None:
    before = json.loads((whole / "student/measured.json").read_text())["rows"]
    outcomes = build.evaluate(config(tmp_path, MEASURED, f"OUTPUT_DIR={whole}"), resume=True)
    assert outcomes["shapes_val"].metrics["ensemble"].as_dict()["mIoU"] == before[1]["mIoU"]


class Unlabelled(ShapesDataset):
    """Scenes without any ground truth."""

    def __getitem__(self, index: int) -> Sample:
        return replace(super().__getitem__(index), labels=None)


def test_photos_without_ground_truth_take_any_class(
    whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(catalog._registered, "bare", lambda root: Unlabelled("train"))
    build.train(
        config(tmp_path, f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}", "DATASETS.TRAIN", "bare")
    )
    [labels] = json.loads((tmp_path / "out/self_training.json").read_text())["pseudo_labels"]
    assert all(row["kept"] == row["true"] == 0 for row in labels["classes"])
    assert any(row["filled"] for row in labels["classes"] if row["seen"])


def test_stale_results_are_refused(whole: Path, tmp_path: Path) -> None:
    run = config(tmp_path, f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}")
    build.train(run)
    labels = tmp_path / "out/labels"
    before = maps(tmp_path / "out")
    with pytest.raises(StaleError, match=r"results of an earlier run\. Go on with --resume"):
        build.train(run)
    other = replace(run, self_training=replace(run.self_training, reject_threshold=0.5))
    with pytest.raises(StaleError, match=r"reject_threshold: 0\.0 there, 0\.5 here.*remove the folder"):
        build.train(other, resume=True)
    student = replace(run, model=replace(run.model, weights=str(whole / "student/model_final.pth")))
    with pytest.raises(StaleError, match=r"sha256\.MODEL\.WEIGHTS"):
        build.train(student, resume=True)
    assert maps(tmp_path / "out") == before, "nothing was overwritten"
    (labels / "manifest.json").write_text("{")
    with pytest.raises(StaleError, match=r"its manifest\.json cannot be read"):
        build.train(run, resume=True)
    (labels / "manifest.json").unlink()
    with pytest.raises(StaleError, match=r"no manifest\.json, so nobody knows"):
        build.train(run, resume=True)
    shutil.rmtree(labels)
    with pytest.raises(StaleError, match=r"student holds the results of another run \(labels: "):
        build.train(other, resume=True)
    shutil.rmtree(tmp_path / "out/student")
    shutil.rmtree(labels)
    build.train(other)
    assert maps(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        (["PROPOSALS.NAME", "oracle"], ConfigError, "self-training trains a maskformer"),
        (["SELF_TRAINING.START", "scrach"], ConfigError, "expected scratch, teacher, or a file with weights"),
        (["DATASETS.TRAIN=[]"], ConfigError, "DATASETS.TRAIN is empty"),
        (["DATASETS.TRAIN", "all_seen"], ConfigError, "all_seen has no unseen class"),
        (["ENSEMBLE.NAME", "tiny_parts:Strips"], ComponentError, "unknown option 'scores'"),
        (["SELF_TRAINING.ENSEMBLE", "{WEIGT: 1}"], ComponentError, "Did you mean 'weight'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(
    options: list[str], error: type[TwostageError], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scenes = ShapesDataset("train")
    scenes.name, scenes.vocabulary = "all_seen", replace(scenes.vocabulary, seen=(True,) * 20)
    monkeypatch.setitem(catalog._registered, "all_seen", lambda root: scenes)
    with pytest.raises(error, match=re.escape(told)):
        build.train(config(tmp_path, *options))
    assert not (tmp_path / "out").exists()


def test_an_ensemble_that_gives_no_maps(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = config(tmp_path, f"MODEL.WEIGHTS={whole / 'teacher/model_final.pth'}")
    bare = Segmentation(torch.zeros(3, 3, dtype=torch.int32))
    monkeypatch.setattr("twostage.segmenter.Segmenter.segment", lambda self, images, words, image_ids: [bare])
    with pytest.raises(TwostageError, match="this ensemble returns none"):
        build.train(run)
