"""Options of prompt learning."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class PromptsConfig:
    """Learning the words around a class name (TASK prompts)."""

    prefix: int = option(16, "Learned vectors before the name", least=0)
    suffix: int = option(0, "Learned vectors behind the name", least=0)
    init: str = option("", "Words the vectors start from, put right before the name; empty: random vectors")
    mode: str = option(
        "fixed",
        "How crops are made: as stage two makes them, or as in the paper's code",
        choices=("fixed", "paper"),
    )
    samples_per_class: int = option(
        32,
        "Regions of each class in one pass; paper: drawn once, with replacement (VOC: 128); fixed: anew each "
        "pass",
        least=1,
    )
    smallest_crop: float = option(
        0.5, "Least share of a region's box that a training crop shows (fixed; paper: 0.08)", above=0, most=1
    )
    views: int = option(
        0,
        "Training crops made of each region beforehand, whose CLIP features all seeds share; 0: new crops in "
        "every update",
        least=0,
    )
    logit_scale: float | None = option(
        100.0, "Factor on cosines in the loss; null takes the model's own", above=0
    )
    photos: int = option(0, "Photos looked through for regions, drawn at random; 0: all", least=0)
    seeds: list[int] = option(
        [0], "One training for each; the best on held-out seen classes is kept", least=0
    )
    held_out: float = option(
        0.2,
        "Share of the seen classes kept from training for that choice; 0: kept photos of the trained classes",
        least=0,
        most=0.9,
    )
