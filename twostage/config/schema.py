"""The options of a run: every one typed, documented, with the paper's value as default.

In files the names are upper case (`SOLVER.BASE_LR`), in Python lower case (`config.solver.base_lr`). Defaults
follow Xu et al., "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-
language Model", ECCV 2022, as trained on COCO-Stuff.
"""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twostage.errors import TwostageError
from twostage.vocabulary import nearest


class ConfigError(TwostageError):
    """A configuration file or an override is unreadable, unknown, of the wrong type or out of range."""


def option(
    default: Any,
    doc: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A documented field: `choices` bounds words; `least`, `above` (exclusive), `most` bound numbers."""
    limits = {"doc": doc, "choices": tuple(choices), "least": least, "above": above, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=limits)
    return field(default=default, metadata=limits)


def section(kind: type) -> Any:
    """A field that holds a section; the section's docstring is its documentation."""
    return field(default_factory=kind)


@dataclass(frozen=True)
class ModelConfig:
    """Stage one's network and where it runs."""

    weights: str = option("", "File with trained weights (.pth or .safetensors); empty starts from scratch")
    device: str = option("auto", "auto takes the GPU when there is one", choices=("auto", "cpu", "cuda"))
    mask_former: dict[str, Any] = option({}, "Options of the mask network, by the names of MaskFormerConfig")
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
class SolverConfig:
    """Optimisation: AdamW with a polynomial learning rate."""

    ims_per_batch: int = option(
        32, "Photos in one update, over all processes and accumulation steps together", least=1
    )
    max_iter: int = option(60000, "Number of updates", least=1)
    base_lr: float = option(1e-4, "Learning rate at the start", above=0)
    backbone_multiplier: float = option(0.1, "Factor on the learning rate of the backbone", least=0)
    weight_decay: float = option(1e-4, "AdamW's decoupled weight decay", least=0)
    weight_decay_norm: float = option(0.0, "The same for normalisation layers", least=0)
    weight_decay_embed: float = option(0.0, "The same for embedding tables such as the queries", least=0)
    poly_power: float = option(0.9, "Rate falls as (1 - iteration / MAX_ITER) ** POLY_POWER", least=0)
    warmup_iters: int = option(0, "Updates in which the rate rises linearly from WARMUP_FACTOR", least=0)
    warmup_factor: float = option(0.001, "First factor of the warm-up", least=0, most=1)
    clip_gradients: float = option(
        0.01, "Largest L2 norm of all gradients together; 0 does not clip", least=0
    )
    accumulation: int = option(1, "Parts in which a process works through its share of a batch", least=1)
    amp: str = option(
        "off",
        "Half precision in training; fp16 needs CUDA, auto takes bf16 where the hardware is made for it",
        choices=("off", "auto", "bf16", "fp16"),
    )
    checkpoint_period: int = option(5000, "Updates between checkpoints; 0 keeps only the final one", least=0)
    checkpoints_to_keep: int = option(3, "Newest checkpoints kept beside the final one; 0 keeps all", least=0)
    log_period: int = option(20, "Updates between progress lines", least=1)


@dataclass(frozen=True)
class TestConfig:
    """Evaluation."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    eval_period: int = option(
        5000, "Updates between evaluations in training; 0 evaluates at the end only", least=0
    )
    systems: list[str] = option([], "Systems to measure; empty means all that the components allow")
    max_images: int = option(0, "Stop after this many photos of each set; 0 takes all", least=0)
    overlays: int = option(10, "Photos of each set drawn with their labels", least=0)


@dataclass(frozen=True)
class ClipConfig:
    """The image-text model and its prompts."""

    model: str = option("ViT-B-16-quickgelu", "open_clip's name of the architecture")
    pretrained: str = option("openai", "open_clip's tag of the weights, or a local file")
    dtype: str = option("fp32", "Number format of the weights", choices=("auto", "fp32", "bf16", "fp16"))
    templates: str = option(
        "imagenet", "A set (single, vild, imagenet), a file, or one template with {} for the name"
    )
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


def _slot(name: str, doc: str) -> Any:
    return field(default_factory=lambda: SlotConfig(name=name), metadata={"doc": doc})


@dataclass(frozen=True)
class Config:
    """A whole run."""

    version: int = option(1, "Version of these names", least=1, most=1)
    output_dir: str = option("output", "Folder that receives everything a run writes")
    seed: int = option(0, "Seed of all randomness; the same seed gives the same numbers", least=0)
    model: ModelConfig = section(ModelConfig)
    clip: ClipConfig = section(ClipConfig)
    proposals: SlotConfig = _slot("maskformer", "Stage one: finds masks without naming them.")
    classifier: SlotConfig = _slot("crops", "Stage two: names masks.")
    dense: SlotConfig = _slot("", "Names patches directly.")
    ensemble: SlotConfig = _slot("geometric", "Weighs the evidence and labels the pixels.")
    datasets: DatasetsConfig = section(DatasetsConfig)
    input: InputConfig = section(InputConfig)
    dataloader: DataloaderConfig = section(DataloaderConfig)
    solver: SolverConfig = section(SolverConfig)
    test: TestConfig = section(TestConfig)


SLOTS = ("proposals", "classifier", "dense", "ensemble")
"""Sections that choose a component."""


def check_value(value: Any, limits: Any, key: str, where: str) -> None:
    """Raises ConfigError when a value (or an element of a list) is outside the limits of its field."""
    for item in value if isinstance(value, list) else [value]:
        if limits.get("choices") and item not in limits["choices"]:
            raise ConfigError(
                f"{where}: {key} is {item!r}; expected one of {', '.join(limits['choices'])}."
                + nearest(str(item), limits["choices"])
            )
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            continue
        if limits.get("least") is not None and not item >= limits["least"]:
            raise ConfigError(f"{where}: {key} is {item}; expected {limits['least']} or more.")
        if limits.get("above") is not None and not item > limits["above"]:
            raise ConfigError(f"{where}: {key} is {item}; expected more than {limits['above']}.")
        if limits.get("most") is not None and not item <= limits["most"]:
            raise ConfigError(f"{where}: {key} is {item}; expected {limits['most']} or less.")
