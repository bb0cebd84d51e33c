"""Who teaches and who learns in self-training: a system with a trained network, or dense CLIP alone.

Dense CLIP as the teacher is MaskCLIP+, section 3.3 of "Extract Free Dense Labels from CLIP" (Zhou, Loy, Dai,
ECCV 2022; arXiv 2112.01071): a segmenter whose last layer is the text learns from the labels that CLIP's
patches give, and then from its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twostage.config import Config, ConfigError, SlotConfig
from twostage.registry import find
from twostage.runs import per_pixel, proposals
from twostage.systems import ENSEMBLE

DENSE = "dense"
"""SELF_TRAINING.TEACHER's word for dense CLIP, and the name of its part of the evidence."""


def is_dense(config: Config) -> bool:
    """Whether the first labels come from dense CLIP alone."""
    return config.self_training.teacher == DENSE


def learner(config: Config) -> Callable[..., Path]:
    """What trains the network of this configuration: stage one, or the per-pixel network.

    Raises:
        ConfigError: there is neither.
    """
    if config.proposals.name == "maskformer":
        return proposals.learn
    if config.pixels.name == "per_pixel" and not config.proposals.name:
        return per_pixel.learn
    raise ConfigError(
        f"PROPOSALS.NAME is {config.proposals.name!r}, but self-training trains a maskformer: set it so, or "
        "set PROPOSALS.NAME '' and PIXELS.NAME per_pixel to train the per-pixel network."
    )


def dense_alone(config: Config) -> Config:
    """The same without a network: only DENSE speaks, and no weights are named.

    Raises:
        ConfigError: DENSE.NAME is empty, or a network that has to be trained first.
    """
    if config.dense.name in ("", "per_pixel"):
        raise ConfigError(
            f"SELF_TRAINING.TEACHER dense: DENSE.NAME is {config.dense.name!r}, which cannot label before "
            "anything is trained. Set DENSE.NAME readout."
        )
    ensemble = config.ensemble
    kind: Any = find("ensembles", ensemble.name)
    known = [field.name for field in dataclasses.fields(kind.Config)]
    if "use" in known:
        ensemble = dataclasses.replace(ensemble, options={**ensemble.options, "use": [DENSE]})
    measured = config.test.systems
    kept = [name for name in measured if name in (DENSE, ENSEMBLE)] or [ENSEMBLE] * bool(measured)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, weights=""),
        proposals=SlotConfig(),
        classifier=SlotConfig(),
        pixels=SlotConfig(),
        ensemble=ensemble,
        test=dataclasses.replace(config.test, systems=kept),
    )
