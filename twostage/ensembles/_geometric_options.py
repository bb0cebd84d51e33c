"""Options of the weighted geometric mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twostage.ensembles import _presence
from twostage.errors import TwostageError
from twostage.vocabulary import nearest

PARTS = ("stage_one", "regions", "dense")
CHOICES = {
    "empty": ("paper", "drop"),
    "uncovered": ("argmax", "dense", "void"),
    "prune": ("", *_presence.SOURCES),
}


@dataclass(frozen=True)
class GeometricConfig:
    """use: the parts to weigh, "stage_one", "regions", "dense"; "all" takes whatever is there; weight:
    exponent of CLIP's region scores on unseen classes (the paper's w); 0 or less leaves CLIP alone;
    seen_weight: the same on seen classes, None for 1 - weight; empty: "paper" gives an empty mask the
    CLIP score 1 for every class, and class 0 to a picture without evidence; "drop" leaves empty masks
    out, and such a picture is void; dense_weight, dense_seen_weight: share in [0, 1] of the dense map,
    pooled under each mask, in CLIP's region scores (None: as for unseen classes); dense_pixel_weight: its
    share in every pixel's class probabilities afterwards; dense_temperature: divides the dense logits
    before their softmax (above 1 softens); presence: share in [0, 1] of CLIP's logits of the image as a
    whole in its logits of every region and every place of the dense map (CASS's gamma, there .1 to .4);
    prune: drops classes that are not in the picture, by their probability in the "image" as a whole, or
    their largest in the "dense" map or the "regions", empty for none; prune_above: keeps those above it;
    prune_top: and of these the likeliest so many, 0 for all; prune_sure: all are kept where none is above
    this, or none passes; uncovered: what a pixel gets that no mask claims, "argmax" of
    the faint rest (paper), "dense" or "void"; coverage: a mask claims the pixels where it is above this;
    scores: return the class map at output size too (K x H x W float32); confidence: return the share of
    each pixel's label in that map (H x W float32).
    """

    use: tuple[str, ...] = ("all",)
    weight: float = 0.8
    seen_weight: float | None = None
    empty: Literal["paper", "drop"] = "paper"
    dense_weight: float = 0.5
    dense_seen_weight: float | None = None
    dense_pixel_weight: float = 0.0
    dense_temperature: float = 1.0
    presence: float = 0.0
    prune: Literal["", "image", "dense", "regions"] = ""
    prune_above: float = 0.0
    prune_top: int = 0
    prune_sure: float = 0.0
    uncovered: Literal["argmax", "dense", "void"] = "argmax"
    coverage: float = 0.5
    scores: bool = False
    confidence: bool = False

    def __post_init__(self) -> None:
        for part in self.use:
            if part not in (*PARTS, "all"):
                raise TwostageError(f"GeometricEnsemble: unknown part {part!r} in use.{nearest(part, PARTS)}")
        for option, allowed in CHOICES.items():
            value = getattr(self, option)
            if value not in allowed:
                raise TwostageError(
                    f"GeometricEnsemble: unknown {option} {value!r}.{nearest(str(value), allowed)}"
                )
        for option in ("seen_weight", "dense_weight", "dense_seen_weight", "dense_pixel_weight"):
            value = getattr(self, option)
            if value is not None and not 0 <= value <= 1:
                raise TwostageError(f"GeometricEnsemble: {option} must lie in [0, 1], got {value}.")
        if self.weight > 1:
            raise TwostageError(f"GeometricEnsemble: weight must be at most 1, got {self.weight}.")
        if self.dense_temperature <= 0:
            raise TwostageError(
                f"GeometricEnsemble: dense_temperature must be above 0, got {self.dense_temperature}."
            )
        _presence.check_options(self)
