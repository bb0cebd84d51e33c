"""Fifteen faults that were found in the published code of the method, and that this one must not share.

Numbered as test_defect_01 ... 15; where the proof stands beside the part concerned, the row here checks that
it is still there.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from twostage.builder import Builder
from twostage.classifiers._tiny import TinyImageModel
from twostage.classifiers.crops import CropClassifier
from twostage.clip.checks import ClipError
from twostage.clip.learned_prompt import LearnedPrompt
from twostage.clip.model import ClipModel
from twostage.config import ConfigError, load_config
from twostage.config.files import parse_yaml
from twostage.data import catalog
from twostage.data.concat import ConcatDataset
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.types import VOID, Evidence, Proposals, RegionScores, TextBank
from twostage.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "train_net.py", *(ROOT / "twostage").rglob("*.py"), *(ROOT / "datasets").glob("*.py")]
MINI = ["CLIP.MODEL=twostage-mini-rn", "CLIP.PRETRAINED=", "PROPOSALS.NAME="]


def stands_in(test: str, *names: str) -> None:
    """Each of these tests is defined in that file below tests/."""
    tree = ast.parse((ROOT / "tests" / test).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert set(names) <= defined, f"{test} lacks {sorted(set(names) - defined)}"


class CountingModel(TinyImageModel):
    """Counts the crops and the calls that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.crops: list[int] = []

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        self.crops.append(len(pixels))
        return super().encode_images(pixels)


def regions(count: int, empty: tuple[int, ...] = ()) -> tuple[torch.Tensor, Proposals]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(count, 24, 32, generator=generator)
    masks[list(empty)] = 0.0
    photo = torch.randint(0, 256, (3, 24, 32), dtype=torch.uint8, generator=generator)
    return photo, Proposals(masks, torch.ones(count))


def text_for(model: TinyImageModel, classes: int = 3) -> TextBank:
    rows = torch.randn(classes, model.dim, generator=torch.Generator().manual_seed(1))
    return TextBank(F.normalize(rows, dim=1), torch.arange(classes), classes)


def test_defect_01_text_is_encoded_once_not_for_every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = ClipModel.encode_text

    def counted(self: ClipModel, texts: Any, chunk: int = 256) -> torch.Tensor:
        calls.append(len(texts))
        return real(self, texts, chunk)

    monkeypatch.setattr(ClipModel, "encode_text", counted)
    builder = Builder(
        load_config(None, ["CLIP.MODEL=twostage-mini-rn", "CLIP.PRETRAINED=", "PROPOSALS.NAME="])
    )
    words = Vocabulary.from_words("cat, dog")
    for _ in range(5):
        builder.words(words)
    assert len(calls) == 1
    stands_in("clip/test_learned_prompt.py", "test_text_is_encoded_once_a_change_of_the_prompt")


def test_defect_02_masks_are_shown_to_clip_in_chunks_not_one_by_one() -> None:
    model = CountingModel()
    photo, found = regions(20)
    CropClassifier(CropClassifier.Config(chunk=8), model).classify(
        [photo, photo], [found, found], text_for(model)
    )
    assert model.crops == [8, 8, 8, 8, 8], "chunks go across the border of the photos"


def test_defect_03_empty_masks_cost_nothing_and_half_precision_is_an_option() -> None:
    model = CountingModel()
    photo, found = regions(10, empty=(0, 3, 9))
    scores = CropClassifier(CropClassifier.Config(), model).classify([photo], [found], text_for(model))[0]
    assert sum(model.crops) == 7
    assert (~scores.valid).nonzero().flatten().tolist() == [0, 3, 9]
    half = Builder(load_config(None, [*MINI, "CLIP.DTYPE=bf16"]))
    assert half.clip.dtype == torch.bfloat16


def test_defect_04_no_map_of_all_classes_at_full_size() -> None:
    stands_in("test_large_vocabulary.py", "test_the_largest_vocabulary_is_safe")


def test_defect_05_the_per_pixel_network_never_widens_its_embedding_to_the_photo() -> None:
    stands_in("dense/test_per_pixel_dense.py", "test_photos_to_labels_in_the_papers_order")


def test_defect_06_empty_masks_can_be_dropped_in_place_of_winning() -> None:
    masks = torch.zeros(1, 4, 4)
    nothing = RegionScores(torch.zeros(1, 2), torch.tensor([False]))
    evidence = Evidence((4, 4), Proposals(masks, torch.ones(1)), regions=nothing)
    words = Vocabulary.from_words("cat, dog")
    paper = GeometricEnsemble(GeometricEnsemble.Config(weight=-1)).merge(evidence, words)
    assert (paper.labels == 0).all(), "parity: class 0 everywhere"
    drop = GeometricEnsemble(GeometricEnsemble.Config(weight=-1, empty="drop")).merge(evidence, words)
    assert (drop.labels == VOID).all()


def test_defect_07_what_crashed_is_said_or_works() -> None:
    """Batches of two data sets, long names; the others stand beside their parts."""
    with pytest.raises(ClipError, match="needs more than the 24 tokens"):
        ClipModel.load("twostage-mini-rn").tokenize(["a " + "very " * 40 + "long name"])
    two = ConcatDataset([catalog.get("shapes_val"), catalog.get("shapes_val@1")])
    assert len(two) == 400
    stands_in("maskformer/test_losses_slow.py", "test_costs_that_are_not_numbers")
    stands_in("data/test_pseudo.py", "test_what_is_rejected_is_void_and_nothing_else")
    stands_in("data/test_pseudo.py", "test_without_ground_truth_seen_classes_compete")
    stands_in("ops/test_crf.py", "test_grey_and_plain_photos")


def test_defect_08_no_names_that_numpy_took_away() -> None:
    gone = re.compile(r"\bnp\.(?:int|float|bool|str|object|complex)\b(?!_)")
    assert [str(path) for path in SOURCES if gone.search(path.read_text(encoding="utf-8"))] == []
    assert int(np.__version__.split(".")[0]) >= 1


def test_defect_09_preparation_makes_every_folder_it_writes_to() -> None:
    stands_in(
        "data/prepare/test_prepare_trees.py",
        "test_the_readers_take_what_is_prepared",
        "test_several_processes_make_the_same",
    )


def test_defect_10_every_configuration_resolves_and_none_can_run_code() -> None:
    stands_in("test_dry_run.py", "test_every_shipped_configuration_is_right")
    for path in (ROOT / "configs").rglob("*.yaml"):
        parse_yaml(path.read_text(encoding="utf-8"), str(path))
    with pytest.raises(ConfigError, match="tag"):
        parse_yaml("A: !!python/object/apply:eval ['1']", "hostile.yaml")


def test_defect_11_prompts_learn_from_the_crops_that_stage_two_shows() -> None:
    stands_in("data/test_regions.py", "test_fixed_crops_by_hand", "test_paper_test_crops_are_never_resized")


def test_defect_12_clip_is_never_in_training_mode() -> None:
    """A ModifiedResNet's statistics stay as they were while prompts are trained through the text tower."""
    clip = ClipModel.load("twostage-mini-rn")
    before = clip.digest
    prompt = LearnedPrompt.random(4, 0, clip.text_tower.width, seed=0).train()
    loss = prompt.encode(clip, ["cat", "dog"]).sum()
    loss.backward()
    assert all(not module.training for module in clip.text_tower.module.modules())
    assert all(parameter.grad is None for parameter in clip.text_tower.module.parameters())
    assert prompt.vectors.grad is not None
    assert clip.digest == before


def test_defect_13_what_was_seen_comes_from_the_checkpoint() -> None:
    stands_in("test_builder.py", "test_who_says_what_was_seen")
    stands_in("data/test_same_words.py", "test_a_network_trained_on_coco_knows_which_voc_words_it_has_seen")


def test_defect_14_no_part_that_nobody_can_reach() -> None:
    """Every option of a component is read somewhere in its own package."""
    from twostage import registry

    for kind in registry.KINDS:
        for name in registry.names(kind):
            module = ROOT / "twostage" / kind / f"{name}.py"
            folder = "\n".join(path.read_text(encoding="utf-8") for path in module.parent.glob("*.py"))
            config: Any = registry.find(kind, name).Config  # type: ignore[attr-defined]
            for field in dataclasses.fields(config):
                assert re.search(rf"\.{field.name}\b|\"{field.name}\"", folder), (
                    f"{kind}/{name}: {field.name}"
                )


def test_defect_15_an_evaluation_holds_counts_not_predictions() -> None:
    """Memory does not grow with the photos: what is kept of a photo has the size of the class list."""
    from twostage.evaluation.confusion import ConfusionMatrix

    matrix = ConfusionMatrix(3)
    size = matrix.counts.nbytes
    for _ in range(5):
        matrix.update(torch.zeros(50, 60, dtype=torch.int32), torch.zeros(50, 60, dtype=torch.int32))
    assert matrix.counts.nbytes == size
    stands_in("evaluation/test_metrics.py", "test_the_two_conventions_differ_by_a_class_predicted_but_absent")
