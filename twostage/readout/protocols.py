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
CASS = _family(Protocol(), (0.1, 0.1, 0.1), {"VOC21": WHOLE, "Cityscapes": {"short_edge": 560}})
PROXYCLIP = _family(
    Protocol(window=336, fit="pad"),
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
# alpha .3 in place of .08 on these two
_STREETS = {"attention": "[qk_procrustes(5) + 0.3 * kk_centred]"}
PEARL = {
    name: replace(one, more=_STREETS) if name in ("Cityscapes", "ADE20K") else one
    for name, one in NACLIP.items()
}
# Later papers' figures: ClearCLIP's table without background, SCLIP's lists with it.
MASKCLIP = {name: SCLIP[name] if name in BACKGROUND else CLEARCLIP[name] for name in BENCHMARKS}

FAMILIES: dict[str, Family] = {
    "maskclip": MASKCLIP,
    "maskclip_clear": MASKCLIP,
    "clearclip": CLEARCLIP,
    "gclip": CLEARCLIP,
    "naclip": NACLIP,
    "resclip": NACLIP,
    "resclip_lite": NACLIP,
    "scclip": SCCLIP,
    "sfp": SFP,
    "pearl": PEARL,
    "cass": CASS,
    "proxyclip": PROXYCLIP,
    "corrclip": PROXYCLIP,
    "itaclip": ITACLIP,
}
"""By preset; one that is not here is evaluated as SCLIP."""

NOT_EXPECTED = {
    "cliptrase": "its figures are from single centre crops of 224 or 336 pixels",
    "pearl": "its figures include label propagation",
    "itaclip": "its figures include further views, descriptions of the classes and PAMR",
}
"""Presets whose published figures this protocol alone does not give, and why."""


def find(preset: str, benchmark: str) -> Protocol:
    """benchmark: one of BENCHMARKS."""
    return FAMILIES.get(preset, SCLIP)[benchmark]
