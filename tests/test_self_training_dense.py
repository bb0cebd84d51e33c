"""MaskCLIP+: dense CLIP alone teaches, with and without the ground truth of seen classes, on drawn scenes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twostage import build
from twostage.builder import Builder
from twostage.clip.model import ClipModel
from twostage.config import Config, ConfigError, load_config
from twostage.data.pseudo import PseudoLabelled, evenly
from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine.checkpoint import read_checkpoint
from twostage.runs import per_pixel, proposals
from twostage.runs.dry_run import dry_run
from twostage.runs.manifest import label_facts
from twostage.runs.pseudo_labels import kept_flags
from twostage.runs.self_training_checks import kept_classes
from twostage.runs.teaching import dense_alone, learner
from twostage.vocabulary import Vocabulary

PHOTOS = 4
RUN = f"""
TASK: self_training
MODEL:
  DEVICE: cpu
  PER_PIXEL: {{BACKBONE: small, SMALL_WIDTHS: [8, 8, 16, 16], PIXEL_DIM: 16, MASK_DIM: 16}}
CLIP: {{MODEL: twostage-mini-rn, PRETRAINED: '', TEMPLATES: single}}
PROPOSALS: {{NAME: ''}}
CLASSIFIER: {{NAME: ''}}
PIXELS: {{NAME: per_pixel}}
DENSE: {{NAME: readout}}
ENSEMBLE: {{NAME: per_pixel, OPTIONS: {{USE: [pixels]}}}}
DATASETS: {{TRAIN: [shapes_train], TEST: [shapes_val]}}
INPUT: {{MIN_SIZE_TRAIN: [64], CROP_SIZE: 64, COLOR_JITTER: false, MIN_SIZE_TEST: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 5, CHECKPOINT_PERIOD: 0, BASE_LR: 0.01}}
SELF_TRAINING: {{TEACHER: dense, KEEP_SEEN: false, MAX_IMAGES: {PHOTOS}, START: teacher, GUIDED_ITER: 2,
  MAX_ITER: 1, ROUNDS: 2}}
TEST: {{MAX_IMAGES: 1, OVERLAYS: 0, EVAL_PERIOD: 0, SYSTEMS: [per pixel, ensemble]}}
"""


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
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run without any ground truth."""
    folder = tmp_path_factory.mktemp("free")
    assert build.train(config(folder)) == folder / "out/student_2/model_final.pth"
    return folder / "out"


def scenes(folder: Path) -> PseudoLabelled:
    data = ShapesDataset("train")
    return PseudoLabelled(data, folder / "labels/maps", evenly(len(data), PHOTOS))


def dense_labels(run: Config, index: int, allowed: torch.Tensor) -> torch.Tensor:
    """What CLIP's map alone says among these classes, made here by hand: enlarge, compare."""
    builder, data = Builder(run), ShapesDataset("train")
    image = data[index].image
    small = builder.segmenter().size.resize(image)
    head = builder.component("dense", run.dense)
    [scores] = head.predict([small], builder.words(data.vocabulary).text)
    full = torch.nn.functional.interpolate(
        scores.logits[None], size=tuple(image.shape[1:]), mode="bilinear", align_corners=False
    )[0]
    full[~allowed] = -torch.inf
    return full.argmax(dim=0)


def test_without_ground_truth_the_labels_are_the_dense_map(free: Path, tmp_path: Path) -> None:
    run = dense_alone(config(tmp_path))
    labels = scenes(free)[1].labels
    assert labels is not None
    places = evenly(len(ShapesDataset("train")), PHOTOS)
    same = labels == dense_labels(run, places[1], torch.ones(20, dtype=torch.bool))
    assert float(same.float().mean()) > 0.999  # a tie may fall the other way


def test_with_it_seen_pixels_keep_their_class_and_dense_labels_the_rest(tmp_path: Path) -> None:
    run = config(tmp_path, "SELF_TRAINING.KEEP_SEEN=true", "SELF_TRAINING.ROUNDS=1", "DATASETS.TEST=[]")
    out = build.train(run).parents[1]
    data = ShapesDataset("train")
    seen = torch.tensor(data.vocabulary.seen)
    places = evenly(len(data), PHOTOS)
    for index in range(PHOTOS):
        sample, truth = scenes(out).with_truth(index)
        assert truth is not None
        assert sample.labels is not None
        kept = seen[truth.long()] & (truth >= 0)
        assert torch.equal(sample.labels[kept], truth[kept])
        if not bool(kept.all()):
            expected = dense_labels(dense_alone(run), places[index], ~seen)[~kept]
            assert float((sample.labels[~kept] == expected).float().mean()) > 0.99
    made = read_checkpoint(out / "student/model_final.pth")["vocabulary"]["pseudo"]
    assert made == [
        n for n, flag in zip(data.vocabulary.shown, data.vocabulary.seen, strict=True) if not flag
    ]


def test_the_ground_truth_takes_no_part(free: Path) -> None:
    """No class keeps it, and the student's checkpoint says that a model made the labels of all of them."""
    [first, _] = json.loads((free / "self_training.json").read_text())["pseudo_labels"]
    assert not any(row["seen"] or row["kept"] for row in first["classes"])
    assert sum(row["true"] for row in first["classes"]) > 0, "counted for the report alone"
    names = read_checkpoint(free / "student/model_final.pth")["vocabulary"]["pseudo"]
    assert names == list(ShapesDataset("train").vocabulary.shown)


def test_guided_then_its_own_labels(free: Path) -> None:
    courses = [
        read_checkpoint(free / step / "model_final.pth")["iteration"] for step in ("student", "student_2")
    ]
    assert courses == [1, 0], "two updates with dense labels, one with its own"
    assert len(list((free / "labels_2/maps").iterdir())) == PHOTOS
    kept = [json.loads((free / step / "manifest.json").read_text()) for step in ("student", "student_2")]
    assert kept[0]["start"] == "scratch"
    assert len(kept[1]["start"]) == 64, "the second round goes on with the student of the first"
    facts = [json.loads((free / step / "manifest.json").read_text()) for step in ("labels", "labels_2")]
    assert [one["options"]["pixels"]["name"] for one in facts] == ["", "per_pixel"]


def test_teacher_and_students_are_measured(free: Path) -> None:
    rows = json.loads((free / "self_training.json").read_text())["systems"]
    found = [row["system"] for row in rows]
    for name in ("ensemble: teacher", "ensemble: student", "ensemble: student_2", "per pixel: student"):
        assert name in found
    assert "per pixel: teacher" not in found
    assert not (free / "teacher/model_final.pth").exists(), "nothing was trained before the student"


def test_a_finished_run_is_not_done_again(free: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in free.rglob("*.p*") if path.suffix in (".png", ".pth")}
    build.train(config(tmp_path, f"OUTPUT_DIR={free}"), resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_teacher_is_the_same_system_without_networks(tmp_path: Path) -> None:
    alone = dense_alone(config(tmp_path, "MODEL.WEIGHTS=somewhere.pth"))
    assert [alone.proposals.name, alone.classifier.name, alone.pixels.name] == ["", "", ""]
    assert alone.model.weights == ""
    assert alone.ensemble.options["use"] == ["dense"]
    assert alone.test.systems == ["ensemble"]
    assert dense_alone(config(tmp_path, "TEST.SYSTEMS=[]")).test.systems == []
    other = config(tmp_path, "ENSEMBLE.NAME=tiny_parts:Strips")
    assert dense_alone(other).ensemble.options == other.ensemble.options, "this one has no option `use`"


def test_who_learns(tmp_path: Path) -> None:
    assert learner(config(tmp_path)) == per_pixel.learn
    assert learner(config(tmp_path, "PROPOSALS.NAME=maskformer", "PIXELS.NAME=")) == proposals.learn


def test_a_maskformer_may_learn_from_dense_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taught = []

    def learn(data: proposals.Data, *given: object, **named: object) -> Path:
        taught.append((data.config.proposals.name, data.vocabulary.shown, data.config.model.weights))
        path = Path(data.config.output_dir, "model_final.pth")
        torch.save({"model": {}}, path)
        return path

    monkeypatch.setattr(proposals, "learn", learn)
    options = (
        "PROPOSALS.NAME=maskformer",
        "PIXELS.NAME=",
        "ENSEMBLE.NAME=geometric",
        "ENSEMBLE.OPTIONS.USE=[all]",
    )
    build.train(config(tmp_path, *options, "DATASETS.TEST=[]", "SELF_TRAINING.ROUNDS=1", "TEST.SYSTEMS=[]"))
    assert taught == [("maskformer", ShapesDataset("train").vocabulary.shown, "")]


def test_flags() -> None:
    words = Vocabulary((("a",), ("b",)), seen=(True, False))
    options = Config().self_training
    assert kept_flags(options, words) == (True, False)
    assert kept_flags(options, replace(words, seen=None)) == (True, True)
    assert kept_flags(replace(options, keep_seen=False), words) == (False, False)


def test_labels_depend_on_what_is_kept_but_not_on_the_course(tmp_path: Path) -> None:
    data = ShapesDataset("train")
    facts = [
        label_facts(config(tmp_path, word), data, [0])
        for word in ("SEED=0", "SELF_TRAINING.GUIDED_ITER=9", "SELF_TRAINING.KEEP_SEEN=true")
    ]
    assert facts[0] == facts[1]
    assert facts[0] != facts[2]


def test_data_without_unseen_classes_will_do(tmp_path: Path) -> None:
    data = ShapesDataset("train")
    data.vocabulary = replace(data.vocabulary, seen=(True,) * 20)
    assert kept_classes(config(tmp_path), data) == (False,) * 20
    with pytest.raises(ConfigError, match=r"KEEP_SEEN false"):
        kept_classes(config(tmp_path, "SELF_TRAINING.KEEP_SEEN=true"), data)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["DENSE.NAME="], "Set DENSE.NAME readout"),
        (["DENSE.NAME=per_pixel"], "cannot label before anything is trained"),
        (["SELF_TRAINING.TEACHER=trained"], "Set SELF_TRAINING.TEACHER dense"),
        (["PIXELS.NAME="], "PIXELS.NAME per_pixel"),
        (["SELF_TRAINING.TEACHER=dence"], "dense"),
    ],
)
def test_what_cannot_work_is_refused_at_once(options: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        build.train(config(tmp_path, *options))
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_the_network_that_learns(tmp_path: Path) -> None:
    plan = dry_run(config(tmp_path))
    assert plan.wrong == []
    assert list(plan.parameters) == ["per-pixel network"]
