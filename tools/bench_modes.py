"""The ways in which the pipeline can be run that the benchmarks compare."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from bench_common import DTYPES

from twostage.classifiers.crops import CropClassifier
from twostage.clip.model import ClipModel
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.maskformer.lean import make_lean
from twostage.maskformer.network import MaskFormer
from twostage.proposals.maskformer import MaskFormerProposals
from twostage.segmenter import Segmenter
from twostage.skipping import Skip
from twostage.views import TestSize

WEIGHT = 0.8


@dataclass(frozen=True)
class Mode:
    """clip, stage_one: number formats; crops: options of the classifier; avoids: whether masks or tokens are
    left out, so that labels may differ by more than rounding.
    """

    clip: str
    stage_one: str = "fp32"
    skip: Skip = field(default_factory=Skip)
    crops: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False

    def segmenter(
        self,
        network: MaskFormer,
        clip: ClipModel,
        size: TestSize,
        device: str = "cpu",
        ensemble: GeometricEnsemble | None = None,
    ) -> Segmenter:
        """network, clip: float32 originals, left as they are. Without an ensemble the paper's."""
        lean = make_lean(copy.deepcopy(network).to(device), DTYPES[self.stage_one])
        tower = clip if self.clip == "fp32" else clip.to_dtype(DTYPES[self.clip])
        return Segmenter(
            ensemble or GeometricEnsemble(GeometricEnsemble.Config(weight=WEIGHT)),
            MaskFormerProposals(MaskFormerProposals.Config(), lean),
            CropClassifier(CropClassifier.Config(**self.crops), tower, compiled=self.compiled),
            size=size,
            device=torch.device(device),
            skip=self.skip,
        )


EXACT = {
    "exact, fp32": Mode("fp32"),
    "exact, bf16 CLIP": Mode("bf16"),
}
HALVED = {"bf16 CLIP and stage one": Mode("bf16", "bf16")}
"""Stage one's masks are cut where a logit changes sign, so its rounding shows: not exact."""
AVOIDING = {
    "bounded": Skip(bounded=True),
    "bounded, 1 % tolerated": Skip(bounded=True, tolerance=0.01),
    "bounded, 5 % tolerated": Skip(bounded=True, tolerance=0.05),
    "duplicates at IoU 0.9": Skip(duplicates=0.9),
    "duplicates at IoU 0.8": Skip(duplicates=0.8),
    "winners of 16 pixels": Skip(winners=16),
    "winners of 0.1 %": Skip(winners=-1),
}
"""winners -1: a thousandth of the photo at test size."""


COMPILED = {"exact, bf16 CLIP, compiled": Mode("bf16", compiled=True)}


def modes(
    avoiding: bool, clip: str, stage_one: str, pixels: int, vit: bool, compiled: bool = False
) -> dict[str, Mode]:
    """EXACT, and where asked COMPILED and every way to avoid work, in these formats; pixels: of the photo
    at test size; vit: whether CLIP has patch tokens that could be left out.
    """
    found = {**EXACT, **HALVED, **(COMPILED if compiled and vit else {})}
    if not avoiding:
        return found
    for name, skip in AVOIDING.items():
        settled = Skip(winners=max(1, pixels // 1000)) if skip.winners < 0 else skip
        found[name] = Mode(clip, stage_one, settled)
    if vit:
        found["filled patches left out"] = Mode(clip, stage_one, crops={"skip_filled": True})
        both = Skip(duplicates=0.8, winners=16)
        found["duplicates, winners, filled patches"] = Mode(clip, stage_one, both, {"skip_filled": True})
    return found
