"""The options of a run: every one typed, documented, with the paper's value as default.

In files the names are upper case (`SOLVER.BASE_LR`), in Python lower case (`config.solver.base_lr`). Defaults
follow Xu et al., "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-
language Model", ECCV 2022, as trained on COCO-Stuff.
"""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from twostage.config.clsclip import ClsClipConfig
from twostage.config.option import option, section
from twostage.config.prompts import PromptsConfig
from twostage.config.self_training import SelfTrainingConfig
from twostage.config.solver import SolverConfig
from twostage.config.testing import TestConfig


@dataclass(frozen=True)
class ModelConfig:
    """Stage one's network and where it runs."""

    weights: str = option(
        "",
        "File with trained weights (.pth or .safetensors), a published checkpoint too; a training may also "
        "start from a backbone's (.pkl); empty starts from scratch",
    )
    device: str = option("auto", "auto takes the GPU when there is one", choices=("auto", "cpu", "cuda"))
    dtype: str = option(
        "fp32",
        "Number format of the convolutions of stage one's trained network where it is asked, not trained; "
        "auto: bf16 where the device has matrix units for it",
        choices=("auto", "fp32", "bf16"),
    )
    mask_former: dict[str, Any] = option({}, "Options of the mask network, by the names of MaskFormerConfig")
    per_pixel: dict[str, Any] = option({}, "Options of the per-pixel network, by the names of PerPixelConfig")
    clsclip: dict[str, Any] = option({}, "Options of ClsCLIP, by the names of ClsClipNetworkConfig")
    clsclip_weights: str = option(
        "", "File with ClsCLIP's trained weights where WEIGHTS is another network's; empty: WEIGHTS"
    )
    losses: dict[str, Any] = option({}, "Factors and kinds of its losses, by the names of LossConfig")


@dataclass(frozen=True)
class DatasetsConfig:
    """Which data to learn from and to measure on, by catalog name."""

    root: str = option("datasets", "Folder that holds the data sets")
    train: list[str] = option([], "Training sets; only their seen classes are learned")
    test: list[str] = option([], "Sets that are evaluated, one after the other")


@dataclass(frozen=True)
class InputConfig:
    """How photos are resized and varied. Order: resize, crop, colour, flip, pad."""

    min_size_train: list[int] = option(
        [320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960],
        "Shorter edge in training, one drawn per photo, pixels",
        least=1,
    )
    max_size_train: int = option(2560, "Longest allowed longer edge in training, pixels", least=1)
    crop_size: int = option(640, "Side of a training crop, pixels; smaller photos are padded", least=1)
    color_jitter: bool = option(True, "Vary brightness, contrast, saturation and hue in training")
    flip: float = option(0.5, "Probability of a horizontal flip in training", least=0, most=1)
    min_size_test: int = option(640, "Shorter edge in evaluation, pixels; 0 keeps the size", least=0)
    max_size_test: int = option(2560, "Longest allowed longer edge in evaluation, pixels", least=1)


@dataclass(frozen=True)
class DataloaderConfig:
    """Reading."""

    num_workers: int = option(
        4, "Reading processes for each training process; 0 reads in the process itself", least=0
    )


@dataclass(frozen=True)
class ClipConfig:
    """The image-text model and its prompts."""

    model: str = option("ViT-B-16-quickgelu", "open_clip's name of the architecture")
    pretrained: str = option(
        "openai",
        "open_clip's tag of the weights, a local file, or checkpoint: those inside a published MODEL.WEIGHTS",
    )
    dtype: str = option("fp32", "Number format of the weights", choices=("auto", "fp32", "bf16", "fp16"))
    compile: bool = option(
        False,
        "Compile the image tower for crops (VisionTransformers): a minute at the first photo, which pays "
        "from a hundred photos on; needs a C++ compiler on a CPU",
    )
    templates: str = option(
        "imagenet", "A set (single, vild, imagenet), a file, or one template with {} for the name"
    )
    stage_one_templates: str = option("", "The same for stage one where its prompts differ; empty: TEMPLATES")
    prompt: str = option("", "File of learned prompt vectors (TASK prompts), used instead of TEMPLATES")
    logit_scale: float | None = option(100.0, "Factor on cosines; null takes the model's own", above=0)
    text_features: str = option("", "File of text features to use instead of the text tower")
    text_names: str = option("", "JSON file with the names of its rows; empty: the vocabulary's order")
    cache_dir: str = option(
        "", "Folder that keeps encoded prompts between runs; auto: below $TWOSTAGE_CACHE; empty: none"
    )


@dataclass(frozen=True)
class SlotConfig:
    """A component by name and its own options."""

    name: str = option(
        "", "File name of the component, or package.module:Class of your own; empty leaves it out"
    )
    options: dict[str, Any] = option({}, "The component's options, by the names of its own Config")

    def names(self) -> set[str]:
        """The component, and those that its option `sources` names below it (PROPOSALS.NAME mixed)."""
        found = {self.name}
        sources = self.options.get("sources")
        for one in sources if isinstance(sources, (list, tuple)) else ():
            below = one if isinstance(one, dict) else {"name": one}
            options = below.get("options")
            found |= SlotConfig(str(below.get("name")), options if isinstance(options, dict) else {}).names()
        return found


TASKS = ("proposals", "prompts", "per_pixel", "self_training", "clsclip")
"""What can be trained: stage one, prompt vectors, the per-pixel baseline, stage one on its own labels,
ClsCLIP."""


def _slot(name: str, doc: str) -> Any:
    return field(default_factory=lambda: SlotConfig(name=name), metadata={"doc": doc})


@dataclass(frozen=True)
class Config:
    """A whole run."""

    version: int = option(1, "Version of these names", least=1, most=1)
    task: str = option("proposals", "What is trained", choices=TASKS)
    output_dir: str = option("output", "Folder that receives everything a run writes")
    seed: int = option(0, "Seed of all randomness; the same seed gives the same numbers", least=0)
    model: ModelConfig = section(ModelConfig)
    clip: ClipConfig = section(ClipConfig)
    proposals: SlotConfig = _slot("maskformer", "Stage one: finds masks without naming them.")
    classifier: SlotConfig = _slot("crops", "Stage two: names masks.")
    dense: SlotConfig = _slot("", "Names patches directly.")
    pixels: SlotConfig = _slot("", "A trained network that names pixels directly.")
    ensemble: SlotConfig = _slot("geometric", "Weighs the evidence and labels the pixels.")
    datasets: DatasetsConfig = section(DatasetsConfig)
    input: InputConfig = section(InputConfig)
    dataloader: DataloaderConfig = section(DataloaderConfig)
    solver: SolverConfig = section(SolverConfig)
    prompts: PromptsConfig = section(PromptsConfig)
    self_training: SelfTrainingConfig = section(SelfTrainingConfig)
    clsclip: ClsClipConfig = section(ClsClipConfig)
    test: TestConfig = section(TestConfig)


SLOTS = ("proposals", "classifier", "dense", "pixels", "ensemble")
"""Sections that choose a component."""
