"""Which region classifiers are compared, as people write them: `pooled:level=values,short_edge=160`.

The name of a component, then its options with commas between them; a point leads into a group
(`cascade:margin=0.3,pooled.level=logits`). `dtype=bf16` is the number format of CLIP. What the configuration
says of a classifier (CLASSIFIER.OPTIONS) counts for the one of that name, and crops' options within a
cascade too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from twostage import registry
from twostage.clip.precision import has_amx
from twostage.config import Config, ConfigError, SlotConfig
from twostage.config.overrides import parse_overrides
from twostage.network_builder import DTYPES
from twostage.vocabulary import nearest

REFERENCE = "crops"
"""What every other candidate is compared with: all masks cut out, CLIP in float32."""
LEVELS = ("logits", "features", "values", "attention")
MARGINS = (0.3, 0.6, 0.8, 0.9)


@dataclass(frozen=True)
class Candidate:
    """name: as it was written; slot: the component with all its options; dtype: CLIP's number format;
    optional: whether it may be left out where it cannot work.
    """

    name: str
    slot: SlotConfig
    dtype: str = "fp32"
    optional: bool = False


def candidates(config: Config, wanted: Sequence[str], device: torch.device) -> list[Candidate]:
    """The classifiers to compare, the reference first; without any wanted those that suit the device.

    Raises:
        ConfigError: a candidate that cannot be read, or two of one name. ComponentError: an unknown
        component or option.
    """
    names = list(wanted) or defaults(device)
    names = names if REFERENCE in names else [REFERENCE, *names]
    names.sort(key=lambda name: name != REFERENCE)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"--classifiers: named twice: {', '.join(twice)}.")
    return [_candidate(name, config, not wanted and name != REFERENCE) for name in names]


def defaults(device: torch.device) -> list[str]:
    """One of everything; half-size numbers only where the hardware is made for them."""
    fast = device.type == "cuda" or has_amx()
    found = [REFERENCE, *(["crops:dtype=bf16"] if fast else []), "query"]
    found += [f"pooled:level={level}" for level in LEVELS]
    found += ["masked_attention", *(f"cascade:margin={margin}" for margin in MARGINS)]
    return found


def _candidate(text: str, config: Config, optional: bool) -> Candidate:
    name, _, told = text.partition(":")
    component = registry.find("classifiers", name)
    options = parse_overrides([word for word in told.split(",") if word])
    dtype = str(options.pop("dtype", "fp32"))
    if dtype not in DTYPES:
        raise ConfigError(f"--classifiers: {text}: unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
    whole = _joined(_configured(name, config), options)
    registry.make_config(component, whole)  # a misspelt option is said at once
    return Candidate(text, SlotConfig(name, whole), dtype, optional)


def _configured(name: str, config: Config) -> Mapping[str, Any]:
    """What the configuration says of this classifier already."""
    slot = config.classifier
    if slot.name == name:
        return slot.options
    if slot.name == REFERENCE and name == "cascade":
        return {REFERENCE: slot.options}
    if slot.name == "cascade":
        inner: Mapping[str, Any] = slot.options.get(name, {})
        return inner
    return {}


def _joined(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second counting where both speak; groups are joined inside."""
    out = dict(base)
    for name, value in more.items():
        old = out.get(name)
        out[name] = _joined(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
