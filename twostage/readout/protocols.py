"""How each published method was evaluated on the eight standard benchmarks of dense CLIP, as data.

One protocol, SCLIP's (Wang, Mei, Yuille, ECCV 2024), with small edits by each method that followed: the
photo's short side, windows, the factor on cosines, thresholds for background, and whose word lists. Numbers
are those of the public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from twostage.readout.preset import BENCHMARKS

BACKGROUND = ("VOC21", "Context60", "COCO-Object")
"""The benchmarks with a class that is everything else."""


@dataclass(frozen=True)
class Protocol:
    """One method on one benchmark.

    short_edge: pixels of the photo's short side (the long one has 2048 at most); window, stride: pixels, 0
    for one pass over the whole photo; scale: factor on cosines; fit: what becomes of pixels that fill no
    patch; probability, area: thresholds below which pixels, or classes, become background; plain: whether
    the words are the plain names, and not SCLIP's lists with synonyms and many words for background; more:
    further options of the dense head by name.
    """

    short_edge: int = 336
    window: int = 224
    stride: int = 112
    scale: float = 40.0
    fit: str = "floor"
    probability: float = 0.0
    area: float = 0.0
    plain: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dense(self) -> dict[str, Any]:
        """Options of the dense head."""
        own = {name: getattr(self, name) for name in ("short_edge", "window", "stride", "scale", "fit")}
        return {**own, "long_edge": 2048, "antialias": False, **self.more}

    @property
    def ensemble(self) -> dict[str, Any]:
        """Options of the per-word ensemble."""
        return {"probability": self.probability, "area": self.area}


Family = dict[str, Protocol]


def _family(
    base: Protocol, thresholds: tuple[float, float, float], changes: Mapping[str, Mapping[str, Any]]
) -> Family:
    """All eight: `base`, the probabilities of BACKGROUND, then the changes of single benchmarks."""
    found = dict.fromkeys(BENCHMARKS, base)
    for name, probability in zip(BACKGROUND, thresholds, strict=True):
        found[name] = replace(base, probability=probability)
    return {name: replace(one, **changes.get(name, {})) for name, one in found.items()}


WHOLE: dict[str, Any] = {"window": 0, "stride": 0}
SCLIP = _family(
    Protocol(),
    (0.1, 0.1, 0.1),
    {
        "VOC21": {"scale": 65.0, "area": 0.1},
        "Context60": {"scale": 50.0},
        "COCO-Object": {"scale": 50.0},
        "COCO-Stuff": {"short_edge": 448},
        "Cityscapes": {"short_edge": 560},
    },
)
# The stride of its smaller windows on Cityscapes is not told; half a window, as everybody's.
CLEARCLIP = _family(
    Protocol(short_edge=448, window=448, stride=224, scale=50.0, fit="pad", plain=True),
    (0.5, 0.15, 0.4),
    {"Cityscapes": {"window": 224, "stride": 112}},
)
NACLIP = _family(
    Protocol(), (0.1, 0.1, 0.1), {"VOC21": WHOLE, "VOC20": WHOLE, "Cityscapes": {"short_edge": 560}}
)
_SCCLIP: dict[str, dict[str, Any]] = {
    "VOC21": {"scale": 50.0, "area": 0.1},
    "COCO-Object": {"scale": 55.0},
    "Cityscapes": {"short_edge": 560},
}
SCCLIP = _family(Protocol(), (0.15, 0.15, 0.35), _SCCLIP)
SFP = _family(Protocol(), (0.15, 0.15, 0.35), {**_SCCLIP, "ADE20K": {"short_edge": 384}})
DINO: dict[str, Any] = {"guest": "timm:vit_base_patch8_224.dino"}
PROXYCLIP = _family(
    Protocol(window=336, fit="pad", more=DINO),
    (0.2, 0.15, 0.25),
    {"Cityscapes": {"short_edge": 448, "window": 224}, "ADE20K": {"short_edge": 448}},
)
ITACLIP = _family(
    Protocol(stride=28),
    (0.1, 0.1, 0.1),
    {
        "VOC21": {"scale": 60.0},
        "VOC20": {"scale": 60.0},
        "Context60": {"scale": 55.0},
        "Context59": {"scale": 55.0},
        "COCO-Object": {"scale": 50.0},
        "Cityscapes": {"short_edge": 560},
    },
)


def _tuned(family: Family, names: tuple[str, ...], values: Mapping[str, tuple[float, ...]]) -> Family:
    """The same with settings of the preset that its authors chose for each benchmark."""
    chosen = {name: {"settings": dict(zip(names, numbers, strict=True))} for name, numbers in values.items()}
    return {name: replace(one, more={**one.more, **chosen[name]}) for name, one in family.items()}


RESCLIP = _tuned(
    NACLIP,
    ("lambda_r", "tau_s", "lambda_s", "temp_thd"),
    {
        "VOC21": (0.3, 2.2, 0.7, 0.5),
        "Context60": (0.3, 1.8, 0.7, 0.3),
        "COCO-Object": (0.4, 1.8, 0.7, 0.11),
        "VOC20": (0.6, 2.1, 0.6, 0.1),
        "Context59": (0.4, 1.8, 0.7, 0.25),
        "COCO-Stuff": (0.4, 1.8, 0.7, 0.11),
        "Cityscapes": (0.2, 2.1, 0.6, 0.1),
        "ADE20K": (0.3, 2.1, 0.7, 0.25),
    },
)
CASS = _tuned(
    _family(Protocol(more=DINO), (0.1, 0.1, 0.1), {"VOC21": WHOLE, "Cityscapes": {"short_edge": 560}}),
    ("class_mix", "text_move", "text_height"),
    {
        "VOC21": (0.1, 0.03, 0.1),
        "Context60": (0.25, 0.04, 0.09),
        "COCO-Object": (0.25, 0.01, 0.1),
        "VOC20": (0.4, 0.02, 0.1),
        "Context59": (0.25, 0.04, 0.09),
        "COCO-Stuff": (0.2, 0.02, 0.02),
        "Cityscapes": (0.1, 0.03, 0.14),
        "ADE20K": (0.3, 0.05, 0.06),
    },
)
# alpha .3 in place of .08 on the last two, and a finer grid for streets; label propagation everywhere
PEARL = {name: replace(one, more={"post": "propagate"}) for name, one in NACLIP.items()}
_STEEP: dict[str, Any] = {"post": "propagate", "attention": "[qk_procrustes(5) + 0.3 * kk_centred]"}
PEARL["ADE20K"] = replace(PEARL["ADE20K"], more=_STEEP)
PEARL["Cityscapes"] = replace(PEARL["Cityscapes"], more={**_STEEP, "post_grid": 224})
# Later papers' figures: ClearCLIP's table without background, SCLIP's lists with it.
MASKCLIP = {name: SCLIP[name] if name in BACKGROUND else CLEARCLIP[name] for name in BENCHMARKS}

FAMILIES: dict[str, Family] = {
    "maskclip": MASKCLIP,
    "maskclip_clear": MASKCLIP,
    "clearclip": CLEARCLIP,
    "gclip": CLEARCLIP,
    "naclip": NACLIP,
    "resclip": RESCLIP,
    "resclip_lite": NACLIP,
    "scclip": SCCLIP,
    "sfp": SFP,
    "pearl": PEARL,
    "cass": CASS,
    "proxyclip": PROXYCLIP,
    "corrclip": PROXYCLIP,
    "itaclip": ITACLIP,
    "gem": MASKCLIP,
}
"""By preset; one that is not here is evaluated as SCLIP."""

NOT_EXPECTED = {
    "cliptrase": "its figures are from single centre crops of 224 or 336 pixels",
    "itaclip": "its figures include further views, descriptions of the classes and PAMR",
    "corrclip": "its figures are with the masks of SAM 2",
    "clipsurgery": "its figures stand in tables of others, with settings that are not told",
}
"""Presets whose published figures this protocol alone does not give, and why."""


def find(preset: str, benchmark: str) -> Protocol:
    """benchmark: one of BENCHMARKS."""
    return FAMILIES.get(preset, SCLIP)[benchmark]
