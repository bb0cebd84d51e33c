"""What an evaluation compares: parts of the evidence, pairs of them, the whole ensemble, two oracles."""

from __future__ import annotations

import dataclasses
from typing import Any

from twostage.config import ConfigError
from twostage.evaluation.runner import ORACLE_CLASSES, ORACLE_MASKS
from twostage.interfaces import Ensemble
from twostage.segmenter import Segmenter
from twostage.vocabulary import nearest

ENSEMBLE = "ensemble"
SYSTEMS: dict[str, tuple[str, ...]] = {
    "stage one": ("stage_one",),
    "CLIP crops": ("regions",),
    "dense": ("dense",),
    "stage one + crops": ("stage_one", "regions"),
    "crops + dense": ("regions", "dense"),
    "per pixel": ("pixels",),
    "per pixel + dense": ("pixels", "dense"),
}
"""Parts of the evidence that an ensemble is also measured on, one at a time and in pairs."""
ALL_SYSTEMS = (*SYSTEMS, ENSEMBLE, ORACLE_MASKS, ORACLE_CLASSES)
"""Every system there is; which ones an evaluation has follows from its parts."""


def systems(segmenter: Segmenter, wanted: list[str]) -> dict[str, Ensemble]:
    """What an evaluation compares: single parts, pairs, the configured ensemble, the oracles.

    wanted: some of these names (TEST.SYSTEMS); empty takes all that the segmenter's parts allow.
    """
    configured: Any = segmenter.ensemble
    present = [
        part
        for part, there in (
            ("stage_one", names_masks(segmenter.proposals)),
            ("regions", segmenter.proposals and segmenter.classifier),
            ("dense", segmenter.dense),
            ("pixels", segmenter.pixels),
        )
        if there and part in getattr(configured, "weighs", (part,))
    ]
    found: dict[str, Ensemble] = {}
    if any(field.name == "use" for field in dataclasses.fields(configured.config)):
        for name, parts in SYSTEMS.items():
            # What is all there is goes by the name "ensemble", unless asked for by its own.
            if set(parts) <= set(present) and (name in wanted or set(parts) != set(present)):
                found[name] = _using(configured, parts)
        if "regions" in present:
            found[ORACLE_MASKS] = _using(configured, ("regions",))
    found[ENSEMBLE] = configured
    if segmenter.proposals is not None:
        found[ORACLE_CLASSES] = configured
    if not wanted:
        return found
    for name in wanted:
        if name not in found:
            raise ConfigError(f"TEST.SYSTEMS: unknown or impossible system {name!r}.{nearest(name, found)}")
    return {name: found[name] for name in wanted}


def names_masks(proposals: Any) -> bool:
    """Whether stage one speaks of classes too, which it says by `names_masks = True`."""
    return bool(getattr(proposals, "names_masks", False))


def _using(ensemble: Any, parts: tuple[str, ...]) -> Ensemble:
    """The same ensemble over some parts only; what needs a dense map is off where there is none."""
    changes: dict[str, Any] = {"use": parts}
    if "dense" not in parts and getattr(ensemble.config, "uncovered", "") == "dense":
        changes["uncovered"] = "argmax"
    return type(ensemble)(dataclasses.replace(ensemble.config, **changes))  # type: ignore[no-any-return]
