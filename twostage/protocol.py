"""TEST.PROTOCOL: a standard evaluation of dense CLIP, filled in as published for the preset that is chosen.

What the configuration says itself stays. Where nothing differs from what was published, the published figure
is expected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from twostage.config import Config, ConfigError
from twostage.dense.readout import ReadoutDense
from twostage.readout import presets, protocols
from twostage.readout.protocols import Protocol
from twostage.systems import ENSEMBLE
from twostage.vocabulary import nearest

DATA_SETS = {
    "VOC21": ("voc21_val", "voc21_plain_val"),
    "Context60": ("pascal_context_60_val", "pascal_context_60_val"),
    "COCO-Object": ("coco_object_val", "coco_object_plain_val"),
    "VOC20": ("voc20_val", "voc20_plain_val"),
    "Context59": ("pascal_context_59_val", "pascal_context_59_val"),
    "COCO-Stuff": ("coco_stuff_val", "coco_stuff_val"),
    "Cityscapes": ("cityscapes_val", "cityscapes_val"),
    "ADE20K": ("ade20k_150_val", "ade20k_150_val"),
}
"""Evaluation -> its data set with SCLIP's words, and with plain names."""
TOLERANCE = 1.5
"""Points of mIoU that a result may lie off: reproductions by others differ by half a point to a point, the
resizing of photos and the files of names by a few tenths more.
"""
DENSE, PER_WORD = "readout", "per_word"
PUBLISHED_CLIP = (("ViT-B-16-quickgelu", "ViT-B-16"), "openai", "imagenet")
"""Model, weights and templates that the published figures belong to."""


def settled(config: Config) -> Config:
    """The same with all filled in that TEST.PROTOCOL leaves to the preset; settling twice adds nothing.

    Raises:
        ConfigError: an unknown evaluation, or no dense readout to evaluate.
    """
    name = config.test.protocol
    if not name:
        return config
    if name not in DATA_SETS:
        raise ConfigError(f"TEST.PROTOCOL: unknown evaluation {name!r}.{nearest(name, DATA_SETS)}")
    if config.dense.name != DENSE:
        raise ConfigError(
            f"TEST.PROTOCOL {name} is for DENSE.NAME {DENSE}, got {config.dense.name!r}: it follows the "
            "preset of that head."
        )
    found = protocols.find(_preset(config), name)
    dense = {**found.dense, **config.dense.options}
    ensemble = config.ensemble
    if ensemble.name == PER_WORD:
        ensemble = dataclasses.replace(ensemble, options={**found.ensemble, **ensemble.options})
    full = dataclasses.replace(
        config,
        dense=dataclasses.replace(config.dense, options=dense),
        ensemble=ensemble,
        datasets=dataclasses.replace(
            config.datasets, test=config.datasets.test or [DATA_SETS[name][found.plain]]
        ),
    )
    row = _expectation(full, found)
    if row is None or any(_same(row, other) for other in full.test.expected_results):
        return full
    rows = [*full.test.expected_results, row]
    return dataclasses.replace(full, test=dataclasses.replace(full.test, expected_results=rows))


def published(config: Config) -> float | None:
    """mIoU in percent that was published for the preset on TEST.PROTOCOL, None where there is none."""
    preset = presets.PRESETS.get(_preset(config))
    return None if preset is None else preset.published.get(config.test.protocol)


def _preset(config: Config) -> str:
    return str(config.dense.options.get("preset", ReadoutDense.Config.preset))


def _expectation(config: Config, found: Protocol) -> list[Any] | None:
    """A row of TEST.EXPECTED_RESULTS, None where the published figure cannot be expected."""
    figure, data_set = published(config), DATA_SETS[config.test.protocol][found.plain]
    systems = config.test.systems
    as_published = (
        _preset(config) not in protocols.NOT_EXPECTED
        and _clip_as_published(config)
        and config.datasets.test == [data_set]
        and _within(config.dense.options, {**found.dense, "preset": None, "chunk": None})
        and config.ensemble.name == PER_WORD
        and _within(config.ensemble.options, {**found.ensemble, "scores": None, "confidence": None})
        and config.input.min_size_test == 0
        and not (config.test.aug.enabled or any(config.test.window.size) or config.test.crf.enabled)
        and (not systems or ENSEMBLE in systems)
    )
    if figure is None or not as_published:
        return None
    return [data_set, ENSEMBLE, "mIoU", figure, TOLERANCE]


def _clip_as_published(config: Config) -> bool:
    clip, (models, weights, templates) = config.clip, PUBLISHED_CLIP
    own = clip.prompt or clip.text_features
    return clip.model in models and clip.pretrained == weights and clip.templates == templates and not own


def _within(options: dict[str, Any], allowed: dict[str, Any]) -> bool:
    """Whether every option has the value allowed, where that is not None."""
    return all(name in allowed and allowed[name] in (None, value) for name, value in options.items())


def _same(row: list[Any], other: Any) -> bool:
    return isinstance(other, list) and other[:3] == row[:3]
