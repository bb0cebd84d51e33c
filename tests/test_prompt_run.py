"""TASK prompts from the configuration to the file, on drawn scenes: seeds, choice, resume, report, use."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from twostage import build
from twostage.builder import Builder
from twostage.clip.learned_prompt import LearnedPromptError
from twostage.clip.prompt_file import load_prompt
from twostage.config import Config, ConfigError, load_config
from twostage.data import catalog
from twostage.data.errors import DataError
from twostage.data.regions import cut_regions
from twostage.data.sample import Sample
from twostage.data.shapes.classes import UNSEEN
from twostage.data.transforms import resize_for_test
from twostage.engine.checkpoint import CheckpointError
from twostage.engine.trainer import NonFiniteLossError
from twostage.evaluation.regions import RegionFeatures
from twostage.evaluation.runner import true_masks
from twostage.runs import prompts
from twostage.runs.prompt_course import Course
from twostage.runs.prompt_report import Judged, Score, best_seed
from twostage.tasks.prompts import PromptTask, held_out_classes
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError

ROOT = Path(__file__).resolve().parents[1]
QUICK = {
    "MODEL.DEVICE": "cpu",
    "DATASETS.TEST": "[shapes_val]",
    "TEST.MAX_IMAGES": 6,
    "TEST.OVERLAYS": 0,
    "PROMPTS.PHOTOS": 12,
    "PROMPTS.SEEDS": "[3, 5]",
    "PROMPTS.SAMPLES_PER_CLASS": 3,
    "PROMPTS.VIEWS": 1,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.LOG_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
}


def config(folder: Path, **more: Any) -> Config:
    """configs/shapes/prompts.yaml cut down; more: SECTION__OPTION=value."""
    options = {
        "OUTPUT_DIR": folder,
        **QUICK,
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return load_config(
        ROOT / "configs" / "shapes" / "prompts.yaml", [f"{name}={value}" for name, value in options.items()]
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two seeds."""
    folder = tmp_path_factory.mktemp("prompts")
    assert build.train(config(folder)) == folder / "prompt.safetensors"
    return folder


def test_every_seed_is_trained_and_the_best_is_kept(finished: Path) -> None:
    kept, facts = load_prompt(finished / "prompt.safetensors")
    each = {seed: load_prompt(finished / f"seed_{seed}" / "prompt.safetensors") for seed in (3, 5)}
    scores = {seed: one[1].score for seed, one in each.items()}
    assert all(score is not None for score in scores.values())
    rows = json.loads((finished / "inference" / "results.json").read_text())["systems"][1:]
    assert [row["choice"] for row in rows] == list(scores.values())
    best = max(rows, key=lambda row: (round(row["choice"], 1), row["certainty"]))
    assert best["system"] == f"seed {facts.seed}"
    assert torch.equal(kept.vectors, each[facts.seed][0].vectors)
    assert not torch.equal(each[3][0].vectors, each[5][0].vectors)
    assert facts.clip == "twostage-mini-rn"
    assert facts.mode == "fixed"
    assert len(facts.names) == 12
    assert not set(facts.names) & set(UNSEEN), "unseen classes take no part"
    state = torch.load(finished / "seed_3" / "model_final.pth", weights_only=True)
    assert list(state["model"]) == ["vectors"]
    assert torch.equal(state["model"]["vectors"], each[3][0].vectors)
    assert [name for group in state["vocabulary"]["names"] for name in group] == list(facts.names)


def test_the_report_tells_mean_spread_and_choice(finished: Path) -> None:
    results = json.loads((finished / "inference" / "results.json").read_text())
    rows = {row["system"]: row for row in results["systems"]}
    assert list(rows) == ["templates: single", "seed 3", "seed 5"]
    values = [rows["seed 3"]["unseen top1"], rows["seed 5"]["unseen top1"]]
    summary = results["summary"]["unseen top1"]
    assert summary["mean"] == pytest.approx(sum(values) / 2)
    assert summary["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (summary["least"], summary["most"]) == (min(values), max(values))
    assert results["chosen_seed"] == load_prompt(finished / "prompt.safetensors")[1].seed
    assert rows["templates: single"]["unseen top1"] > 80
    details = rows["seed 3"]["details"]
    assert sum(one["regions"] for one in details["classes"]) == details["overall"]["regions"] > 20
    assert results["provenance"]["seeds"] == {"prompt 0": 3, "prompt 1": 5}


def test_resume_skips_what_is_finished(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_prompt(finished / "prompt.safetensors")
    steps: list[int] = []
    monkeypatch.setattr("twostage.runs.prompt_course.encode_views", None)  # no crop is made to learn from
    real = PromptTask.losses
    monkeypatch.setattr(PromptTask, "losses", lambda task, batch: steps.append(1) or real(task, batch))
    build.train(config(finished), resume=True)
    assert steps == []
    after = load_prompt(finished / "prompt.safetensors")
    assert torch.equal(after[0].vectors, before[0].vectors)
    assert after[1] == before[1]
    monkeypatch.undo()
    monkeypatch.setattr(PromptTask, "losses", lambda task, batch: steps.append(1) or real(task, batch))
    build.train(config(finished / "more", PROMPTS__SEEDS="[3]"), resume=True)
    assert len(steps) == 4
    again = load_prompt(finished / "more" / "prompt.safetensors")[0]
    assert torch.equal(again.vectors, load_prompt(finished / "seed_3" / "prompt.safetensors")[0].vectors)


def test_the_prompt_names_regions_in_an_evaluation(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is encoded once for a data set, not once a photo."""
    given = load_config(
        ROOT / "configs" / "shapes" / "zero_shot.yaml",
        [
            "MODEL.WEIGHTS=package:shapes",
            "MODEL.DEVICE=cpu",
            f"CLIP.PROMPT={finished / 'prompt.safetensors'}",
            "CLIP.STAGE_ONE_TEMPLATES=single",
            "TEST.MAX_IMAGES=3",
            "TEST.OVERLAYS=0",
            f"OUTPUT_DIR={finished / 'used'}",
        ],
    )
    made = Builder(given)
    tower, calls = made.clip.text_tower, []
    real = tower.encode_embeddings
    monkeypatch.setattr(tower, "encode_embeddings", lambda *a: calls.append(len(a[0])) or real(*a))
    from twostage.runs import evaluation

    dataset = catalog.get("shapes_val")
    evaluation.measure(made, [dataset])
    assert calls.count(20) == 2, "the learned prompt, and the template of stage one"
    plain = Builder(
        load_config(None, ["CLIP.MODEL=twostage-mini-rn", "CLIP.PRETRAINED=", "MODEL.DEVICE=cpu"])
    )
    assert not torch.allclose(made.text(dataset.vocabulary).features, plain.text(dataset.vocabulary).features)
    found = prompts.evaluate(config(finished / "judged", CLIP__PROMPT=finished / "prompt.safetensors"))
    rows = json.loads((finished / "inference" / "results.json").read_text())["systems"]
    chosen = next(row for row in rows if row["system"] == f"seed {load_prompt(given.clip.prompt)[1].seed}")
    assert found["shapes_val"].overall.mean_top1 == pytest.approx(chosen["top1"])


def test_the_chosen_prompt_is_judged_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used: list[str] = []
    monkeypatch.setattr(prompts, "write_report", lambda made, *rest: used.append(made.config.clip.prompt))
    chosen = finished / "prompt.safetensors"
    build.evaluate(config(finished, TEST__MAX_IMAGES=1), resume=True)
    assert used == [str(chosen)]
    with pytest.raises(CheckpointError, match="written when every seed is trained"):
        build.evaluate(config(tmp_path), resume=True)


def test_crops_made_anew_in_every_update(tmp_path: Path) -> None:
    for mode in ("fixed", "paper"):
        folder = tmp_path / mode
        options = {"PROMPTS__MODE": mode, "PROMPTS__VIEWS": 0, "PROMPTS__SEEDS": "[1]", "SOLVER__MAX_ITER": 2}
        options["SOLVER__IMS_PER_BATCH"] = 2
        path = build.train(config(folder, **options, PROMPTS__HELD_OUT=0, TEST__MAX_IMAGES=2))
        facts = load_prompt(path)[1]
        assert facts.mode == mode
        assert facts.score is None, "one seed and nothing held out: there is no choice"
        assert len(facts.names) == 15
        lines = [json.loads(line) for line in (folder / "seed_1" / "metrics.json").read_text().splitlines()]
        assert sum("loss_ce" in line for line in lines) == 2
        assert any("shapes_val/unseen top1" in line for line in lines)


def test_clip_stays_as_it_is(tmp_path: Path) -> None:
    """Neither gradients nor the statistics of its batch norms move while a prompt learns."""
    course = Course(config(tmp_path, PROMPTS__SEEDS="[1]", PROMPTS__VIEWS=0))
    clip = course.builder.clip
    before = {name: tensor.clone() for name, tensor in clip._module.state_dict().items()}
    start = course.learn(1, False).vectors.detach().clone()
    assert not clip._module.training
    for name, tensor in clip._module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert any("running_mean" in name for name in before)
    assert start.shape == (course.config.prompts.prefix + course.config.prompts.suffix, 128)


def test_learning_lowers_the_loss(tmp_path: Path) -> None:
    more = {
        "SOLVER__MAX_ITER": 60,
        "SOLVER__IMS_PER_BATCH": 32,
        "SOLVER__WARMUP_ITERS": 0,
        "SOLVER__BASE_LR": 0.05,
    }
    build.train(config(tmp_path, PROMPTS__SEEDS="[1]", PROMPTS__INIT="", **more))
    lines = [json.loads(line) for line in (tmp_path / "seed_1" / "metrics.json").read_text().splitlines()]
    losses = [line["loss_ce"] for line in lines if "loss_ce" in line]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_regions_are_shown_as_stage_two_shows_them(tmp_path: Path) -> None:
    """The crops of true masks equal those of the classifier with its options, on a photo at test size."""
    for given in (
        "{}",
        "{MASK_FILL: zero, ASPECT: pad, MODE: antialias, IMAGE_SIZE: 40, MASK_EXPAND_RATIO: 1.5}",
    ):
        course = Course(config(tmp_path, CLASSIFIER__OPTIONS=given, INPUT__MIN_SIZE_TEST=140))
        classifier: Any = course.builder.component("classifiers", course.config.classifier)
        sample = catalog.get("shapes_val")[3]
        image = resize_for_test(sample.image, 140, 2560)
        assert sample.labels is not None
        masks = true_masks(sample.labels, image.shape[1:])
        made = [pixels.clone() for _, pixels in classifier.chunks([image], [masks])]
        found = cut_regions(catalog.get("shapes_val"), {3: None}, course.cutter)
        shown = torch.stack([crop for _, crop in found])
        torch.testing.assert_close(shown, torch.cat(made), rtol=1e-5, atol=1e-5)


def test_held_out_classes_follow_their_names() -> None:
    words = Vocabulary.from_words("a, b, c, d, e, f, g, h, i, j")
    chosen = [words.shown[k] for k in held_out_classes(words, 0.3)]
    assert len(chosen) == 3
    turned = Vocabulary(tuple(reversed(words.names)))
    assert {turned.shown[k] for k in held_out_classes(turned, 0.3)} == set(chosen)
    assert held_out_classes(words, 0.0) == []
    assert len(held_out_classes(words, 0.01)) == 1
    assert len(held_out_classes(Vocabulary.from_words("a, b"), 0.9)) == 1
    assert held_out_classes(Vocabulary.from_words("a"), 0.5) == []


def test_ties_go_to_the_more_certain_and_then_to_the_first() -> None:
    def judged(*scores: tuple[float, float] | None) -> dict[int, Judged]:
        return {
            seed: Judged(None if one is None else Score(*one), {}) for seed, one in enumerate(scores, start=4)
        }

    assert best_seed(judged((90.0, 99.0), (91.0, 50.0))) == 5
    assert best_seed(judged((91.01, 60.0), (91.02, 50.0))) == 4
    assert best_seed(judged((91.0, 50.0), (91.0, 50.0))) == 4
    assert best_seed(judged(None, None)) == 4


def test_certainty_by_hand() -> None:
    regions = RegionFeatures(
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([0, 1, 1]),
        Vocabulary.from_words("a, b"),
        {},
    )
    text = TextBank(torch.eye(2), torch.arange(2), 2, logit_scale=1.0)
    high = math.exp(1) / (math.exp(1) + 1)
    assert regions.certainty(text) == pytest.approx(100 * (high + (1 - high + high) / 2) / 2)


def test_without_held_out_classes_other_photos_choose(tmp_path: Path) -> None:
    course = Course(config(tmp_path, PROMPTS__HELD_OUT=0))
    learned, kept = course.photos
    assert not set(learned) & set(kept)
    assert len(learned) + len(kept) == 12
    assert len(kept) == 2
    assert {region.photo for region in course._to_learn} <= set(learned)
    assert course._choice is not None
    assert len(course._choice.features) == sum(
        r.photo in kept and r.label in course.seen for r in course.regions
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"CLIP__PROMPT": "some.safetensors"}, "learns what CLIP.PROMPT would name: empty it"),
        ({"MODEL__WEIGHTS": "some.pth"}, "MODEL.WEIGHTS has no place"),
        ({"CLIP__TEXT_FEATURES": "some.npy"}, "CLIP.TEXT_FEATURES has no place"),
        ({"PROMPTS__SEEDS": "[]"}, "PROMPTS.SEEDS is empty"),
        ({"PROMPTS__PREFIX": 0, "PROMPTS__SUFFIX": 0}, "nothing would be learned"),
        ({"DATASETS__TRAIN": "[]"}, "DATASETS.TRAIN is empty"),
        ({"PROMPTS__MODE": "papr"}, "Did you mean 'paper'"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build.train(config(tmp_path, **options))
    assert not list(tmp_path.iterdir())


def test_too_many_vectors_for_the_names(tmp_path: Path) -> None:
    with pytest.raises(
        LearnedPromptError, match=r"the name '.*' is \d tokens, but 20 vectors leave room for 1"
    ):
        build.train(config(tmp_path, PROMPTS__PREFIX=20, PROMPTS__SUFFIX=0, PROMPTS__INIT=""))


def test_resume_needs_the_same_classes_and_the_same_clip(finished: Path) -> None:
    with pytest.raises(VocabularyError, match="another vocabulary"):
        build.train(config(finished, PROMPTS__HELD_OUT=0.4), resume=True)
    with pytest.raises(CheckpointError, match="Resume with the CLIP options of the run"):
        build.train(config(finished, CLIP__PRETRAINED="random"), resume=True)
    prefix = config(finished).prompts.prefix
    with pytest.raises(CheckpointError, match=r"Resume with the PROMPTS\.PREFIX of the run"):
        build.train(
            config(finished, PROMPTS__PREFIX=prefix - 1, PROMPTS__SUFFIX=1, PROMPTS__INIT=""), resume=True
        )


def test_a_loss_that_is_not_finite_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PromptTask.losses

    def poisoned(task: PromptTask, batch: Any) -> dict[str, torch.Tensor]:
        return {"loss_ce": real(task, batch)["loss_ce"] * float("nan")}

    monkeypatch.setattr(PromptTask, "losses", poisoned)
    with pytest.raises(NonFiniteLossError, match=r"loss_ce is nan.*train_"):
        build.train(config(tmp_path))
    assert not (tmp_path / "prompt.safetensors").exists()


def test_classes_that_never_occur_compete_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Void:
        name = "void"
        vocabulary = Vocabulary.from_words("cat, dog")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            shown = torch.full((8, 8), -1 if index else 0, dtype=torch.int32)
            return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), shown, str(index))

    monkeypatch.setitem(catalog._registered, "cats", lambda _: Void())
    monkeypatch.setattr(logging.getLogger("twostage"), "propagate", True)
    options = {
        "DATASETS__TRAIN": "[cats]",
        "DATASETS__TEST": "[]",
        "PROMPTS__HELD_OUT": 0,
        "PROMPTS__SEEDS": "[0]",
    }
    with caplog.at_level(logging.WARNING):
        build.train(config(tmp_path, **options, SOLVER__MAX_ITER=1))
    assert "No region of these classes, which compete nevertheless: dog" in caplog.text
    monkeypatch.setattr(
        Void,
        "__getitem__",
        lambda self, index: Sample(
            torch.zeros(3, 8, 8, dtype=torch.uint8), torch.full((8, 8), -1, dtype=torch.int32), str(index)
        ),
    )
    with pytest.raises(DataError, match="none of the classes to learn occurs"):
        build.train(config(tmp_path / "none", **options))
