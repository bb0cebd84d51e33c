"""The configurations of the paper against its tables, written down here a second time."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import pytest

from twostage.config import Config, load_config
from twostage.data import catalog
from twostage.data.benchmarks import BENCHMARKS
from twostage.evaluation import expected
from twostage.runs.dry_run import dry_run
from twostage.systems import ALL_SYSTEMS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FOLDERS = ("coco_stuff", "voc", "ade20k", "pascal_context", "cityscapes")
FILES = sorted(f"{folder}/{path.stem}" for folder in FOLDERS for path in (CONFIGS / folder).glob("*.yaml"))
RUNS = [name for name in FILES if not name.endswith("/Base")]
LEARNED = {
    "coco": "output/coco_stuff/prompts/prompt.safetensors",
    "voc": "output/voc/prompts/prompt.safetensors",
}


class Row(NamedTuple):
    """Prompt ("coco" and "voc" are learned ones), CLIP, backbone, mask threshold, w, test edges."""

    test: str
    prompt: str
    clip: str
    backbone: str
    threshold: float
    weight: float
    edges: tuple[int, int]


COCO, VOC, B16 = (640, 2560), (512, 2048), "ViT-B-16"
SYSTEMS = {
    "coco_stuff/zero_shot_R101c": Row("coco_stuff_val", "coco", B16, "r101c", 0.5, 0.8, COCO),
    "coco_stuff/zero_shot_R50": Row("coco_stuff_val", "coco", B16, "r50", 0.5, 0.8, COCO),
    "coco_stuff/R101c_single": Row("coco_stuff_val", "single", B16, "r101c", 0.5, 0.8, COCO),
    "coco_stuff/R101c_imagenet": Row("coco_stuff_val", "imagenet", B16, "r101c", 0.5, 0.8, COCO),
    "coco_stuff/R101c_vild": Row("coco_stuff_val", "vild", B16, "r101c", 0.5, 0.8, COCO),
    "coco_stuff/R50_single": Row("coco_stuff_val", "single", B16, "r50", 0.5, 0.8, COCO),
    "coco_stuff/R50_imagenet": Row("coco_stuff_val", "imagenet", B16, "r50", 0.5, 0.8, COCO),
    "coco_stuff/R50_vild": Row("coco_stuff_val", "vild", B16, "r50", 0.5, 0.8, COCO),
    "coco_stuff/clip_RN50": Row("coco_stuff_val", "single", "RN50", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/clip_RN101": Row("coco_stuff_val", "single", "RN101", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/clip_RN50x4": Row("coco_stuff_val", "single", "RN50x4", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/clip_RN50x16": Row("coco_stuff_val", "single", "RN50x16", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/clip_ViT-B-32": Row("coco_stuff_val", "single", "ViT-B-32", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/clip_ViT-L-14": Row("coco_stuff_val", "single", "ViT-L-14", "r101c", 0.5, 0.8, COCO),
    "coco_stuff/cross_dataset": Row("coco_stuff_val", "vild", B16, "r101c", 0.5, 0.8, COCO),
    "coco_stuff/self_training": Row("coco_stuff_val", "coco", B16, "r101c", 0.5, 0.8, COCO),
    "voc/zero_shot_R101c": Row("voc_val", "voc", B16, "r101c", 0.5, 0.7, VOC),
    "voc/zero_shot_R50": Row("voc_val", "voc", B16, "r50", 0.5, 0.7, VOC),
    "voc/R101c_single": Row("voc_val", "single", B16, "r101c", 0.5, 0.7, VOC),
    "voc/self_training": Row("voc_val", "voc", B16, "r101c", 0.5, 0.7, VOC),
    "voc/cross_dataset": Row("voc_val", "coco", B16, "r101c", 0.5, 0.4, VOC),
    "ade20k/150": Row("ade20k_150_val", "vild", B16, "r101c", 0.4, 0.5, VOC),
    "ade20k/847": Row("ade20k_847_val", "vild", B16, "r101c", 0.3, 0.7, VOC),
    "cityscapes/19": Row("cityscapes_val", "vild", B16, "r101c", 0.3, 0.4, (1024, 2048)),
    "pascal_context/59": Row("pascal_context_59_val", "vild", B16, "r101c", 0.5, 0.4, VOC),
    "pascal_context/459": Row("pascal_context_459_val", "vild", B16, "r101c", 0.5, 0.4, VOC),
}
OTHERS = {
    f"{folder}/{name}"
    for folder, names in (
        (
            "coco_stuff",
            ("clsclip", "maskclip_plus", "per_pixel", "prompts", "prompts_selected", "supervised"),
        ),
        ("voc", ("clsclip", "maskclip_plus", "prompts", "supervised")),
    )
    for name in names
}

# (system, metric, percent) as the paper prints them
FIGURES: dict[str, list[tuple[str, str, float]]] = {
    "coco_stuff/zero_shot_R101c": [
        *(("ensemble", "seen", 39.3), ("ensemble", "unseen", 36.3), ("ensemble", "hIoU", 37.8)),
        *(("stage one", "seen", 38.7), ("stage one", "unseen", 4.9), ("stage one", "hIoU", 8.7)),
        *(("CLIP crops", "seen", 26.8), ("CLIP crops", "unseen", 29.7), ("CLIP crops", "hIoU", 28.2)),
    ],
    "coco_stuff/R101c_single": [("CLIP crops", "hIoU", 18.3)],
    "coco_stuff/clip_RN50": [("CLIP crops", "hIoU", 15.2)],
    "coco_stuff/clip_RN101": [("CLIP crops", "hIoU", 13.8)],
    "coco_stuff/clip_ViT-B-32": [("CLIP crops", "hIoU", 15.3)],
    "coco_stuff/per_pixel": [("ensemble", "hIoU", 20.9)],
    "coco_stuff/supervised": [("ensemble", "unseen", 62.6)],
    "coco_stuff/self_training": [("ensemble", "unseen", 43.6), ("ensemble", "hIoU", 41.5)],
    "voc/zero_shot_R101c": [
        ("ensemble", "seen", 83.5),
        ("ensemble", "unseen", 72.5),
        ("ensemble", "hIoU", 77.5),
    ],
    "voc/self_training": [("ensemble", "hIoU", 79.3)],
    "voc/cross_dataset": [("ensemble", "mIoU", 88.4)],
    "ade20k/150": [("ensemble", "mIoU", 20.5)],
    "ade20k/847": [("ensemble", "mIoU", 7.0)],
    "pascal_context/59": [("ensemble", "mIoU", 47.7)],
    "cityscapes/19": [("ensemble", "mIoU", 34.5)],
    # Wu et al., "[CLS] Token is All You Need for Zero-Shot Semantic Segmentation": means over four folds
    "voc/clsclip": [("clsclip", "unseen", 56.4)],
    "coco_stuff/clsclip": [("clsclip", "unseen", 37.0)],
}


@functools.cache
def config_of(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


def test_every_file_is_in_the_tables() -> None:
    assert sorted({*SYSTEMS, *OTHERS}) == RUNS


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_values_of_the_paper(name: str) -> None:
    config, row = config_of(name), SYSTEMS[name]
    assert config.datasets.test == [row.test]
    assert config.clip.prompt == LEARNED.get(row.prompt, "")
    assert config.clip.templates == ("single" if row.prompt in LEARNED else row.prompt)
    assert config.clip.stage_one_templates == ("single" if row.prompt == "voc" else "")
    assert (config.clip.model, config.clip.pretrained) == (f"{row.clip}-quickgelu", "openai")
    assert config.model.mask_former.get("backbone", "r101c") == row.backbone
    assert (config.classifier.name, config.ensemble.name) == ("crops", "geometric")
    assert config.classifier.options == {"mask_threshold": row.threshold, "image_size": 224}
    assert config.ensemble.options == {"weight": row.weight}
    assert (config.input.min_size_test, config.input.max_size_test) == row.edges
    benchmark = BENCHMARKS[row.test]
    assert (benchmark.test_short, benchmark.test_long) == row.edges
    assert config.test.seen == "dataset"


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_no_object_vector_starts_as_wide_as_the_text_tower(name: str) -> None:
    width = {"RN50x4": 640, "RN50x16": 768, "ViT-L-14": 768}.get(SYSTEMS[name].clip, 512)
    given = config_of(name).model.mask_former.get("no_object_std", 512**-0.5)
    assert given == pytest.approx(width**-0.5, rel=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_schedules(name: str) -> None:
    config, voc = config_of(name), name.startswith("voc/")
    if config.task == "clsclip":
        solver = config.solver
        assert (solver.optimizer, solver.schedule, solver.base_lr) == ("sgd", "poly", 5e-5)
        assert (solver.momentum, solver.weight_decay, solver.poly_power) == (0.9, 1e-4, 0.9)
        assert (solver.ims_per_batch, solver.clip_gradients, config.input.crop_size) == (8, 0, 480)
        return
    if not config.datasets.train:
        assert config.model.weights.startswith("output/coco_stuff/")
        return
    updates = {"coco_stuff/cross_dataset": 120_000, "voc/prompts": 3_200}
    batch = 32
    if config.task == "prompts":
        assert (config.solver.optimizer, config.solver.schedule, config.solver.base_lr) == (
            "sgd",
            "cosine",
            0.02,
        )
        assert (config.solver.momentum, config.solver.weight_decay) == (0.9, 5e-4)
        warmup = (config.solver.warmup_iters, config.solver.warmup_method, config.solver.warmup_factor)
        assert warmup == (100, "constant", 0.005)
        assert config.prompts.samples_per_class == (128 if voc else 32)
        assert (config.prompts.prefix, config.prompts.suffix) == (16, 0)
        assert config.solver.max_iter == updates.get(name, 16_000)
    else:
        solver = config.solver
        assert (solver.optimizer, solver.schedule, solver.base_lr) == ("adamw", "poly", 1e-4)
        assert (solver.weight_decay, solver.backbone_multiplier, solver.poly_power) == (1e-4, 0.1, 0.9)
        assert solver.max_iter == updates.get(name, 20_000 if voc else 60_000)
        assert (config.input.crop_size, config.input.max_size_train) == ((512, 2048) if voc else (640, 2560))
        batch = 16 if voc else 32
    assert (config.solver.ims_per_batch, config.solver.clip_gradients) == (batch, 0.01)


@pytest.mark.parametrize("name", RUNS)
def test_figures_of_the_paper(name: str) -> None:
    config = config_of(name)
    task, systems = config.task, config.test.systems or (*ALL_SYSTEMS, "clsclip")
    metrics = expected.PAIR_METRICS if task == "clsclip" else expected.METRICS
    rows = expected.parse(config.test.expected_results, config.datasets.test, systems, metrics)
    assert [(row.system, row.metric, row.percent) for row in rows] == FIGURES.get(name, [])
    assert all(0 < row.tolerance <= 6 for row in rows)


@pytest.mark.parametrize("name", RUNS)
def test_data_sets_and_training_labels(name: str) -> None:
    config = config_of(name)
    assert {*config.datasets.train, *config.datasets.test} <= set(catalog.names())
    family = name.partition("/")[0]
    others = {"supervised": "_all", "self_training": "", "maskclip_plus": "", "clsclip": ""}
    ending = others.get(name.partition("/")[2], "_seen")
    assert config.datasets.train in ([], [f"{family}_train{ending}"])


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_what_it_is_and_how_to_run_it(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    head = text[: text.index("_BASE_")]
    assert all(line.startswith("# ") for line in head.splitlines())
    told = "No run of its own" if name.endswith("/Base") else f"--config-file configs/{name}.yaml"
    assert told in head
    assert max(len(line) for line in text.splitlines()) <= 120


def test_no_two_runs_share_a_folder() -> None:
    folders = [config_of(name).output_dir for name in RUNS]
    assert len(set(folders)) == len(folders)
    made = {f"{folder}/model_final.pth" for folder in folders} | set(LEARNED.values())
    for name in RUNS:
        config = config_of(name)
        for path in (config.model.weights, config.clip.prompt):
            assert path in made or path.startswith("pretrained/") or not path, f"{name}: who makes {path}?"


@pytest.mark.parametrize(
    ("name", "network", "parameters"),
    [
        ("coco_stuff/zero_shot_R101c", "stage one", 61_067_712),
        ("voc/zero_shot_R50", "stage one", 42_004_416),
        # Wider joint spaces widen the last layer of the class head and the "no object" vector.
        ("coco_stuff/clip_RN50", "stage one", 61_067_712 + (1024 - 512) * (1024 + 2)),
        ("coco_stuff/clip_ViT-L-14", "stage one", 61_067_712 + (768 - 512) * (1024 + 2)),
        ("coco_stuff/prompts", "prompt", 16 * 512),
    ],
)
def test_sizes(name: str, network: str, parameters: int, tmp_path: Path) -> None:
    config = config_of(name)
    config = dataclasses.replace(config, datasets=dataclasses.replace(config.datasets, root=str(tmp_path)))
    plan = dry_run(config)
    assert plan.wrong == []
    assert plan.parameters == {network: parameters}
