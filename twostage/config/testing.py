"""Options of an evaluation."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twostage.config.option import option, section
from twostage.config.skip import SkipConfig
from twostage.config.test_time import AugConfig, CrfConfig, WindowConfig


@dataclass(frozen=True)
class TestConfig:
    """Evaluation."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    eval_period: int = option(
        5000, "Updates between evaluations in training; 0 evaluates at the end only", least=0
    )
    systems: list[str] = option([], "Systems to measure; empty means all that the components allow")
    max_images: int = option(0, "Stop after this many photos of each set; 0 takes all", least=0)
    on_error: str = option(
        "stop",
        "At a photo that cannot be read or looked at: stop ends the evaluation, skip leaves the photo out, "
        "which the results say",
        choices=("stop", "skip"),
    )
    resume: bool = option(
        False, "Go on with the counts of an evaluation of the same things that was stopped in OUTPUT_DIR"
    )
    save_seconds: float = option(60.0, "Seconds between two savings of these counts", least=0)
    seen: str = option(
        "checkpoint",
        "Who says which classes the ensemble treats as seen: the names a checkpoint was trained on, or the "
        "flags of the data set (the paper); reports are grouped by the data set's flags where it has any",
        choices=("checkpoint", "dataset"),
    )
    expected_results: list[Any] = option(
        [],
        "Figures to be met, each as [data set, system, metric, percent, tolerance]; checked at the end of an "
        "evaluation of all photos",
    )
    protocol: str = option(
        "",
        "A standard evaluation of dense CLIP: VOC21, Context60, COCO-Object, VOC20, Context59, COCO-Stuff, "
        "Cityscapes or ADE20K. Sizes, windows, scale, thresholds and the data set are as published for "
        "DENSE.OPTIONS.PRESET where nothing else is said, and its published figure is expected, +- 1.5",
    )
    overlays: int = option(10, "Photos of each set drawn with their labels", least=0)
    maps_gib: float = option(
        2.0,
        "Most memory in GiB for averaging class maps (AUG, WINDOW, CRF), over all systems, and as much again "
        "for CRF; where many classes on a large photo need more, they are averaged on a coarser grid",
        above=0,
    )
    memory_gib: float = option(
        0.0,
        "Most memory in GiB beside the networks' weights for stage two: masks, crops and CLIP's activations. "
        "Batches are made smaller to fit; too little for a photo is an error that says how much it takes. "
        "0: no limit, batches of a size that suits the device",
        least=0,
    )
    skip: SkipConfig = section(SkipConfig)
    aug: AugConfig = section(AugConfig)
    window: WindowConfig = section(WindowConfig)
    crf: CrfConfig = section(CrfConfig)
