"""What a preset is: a published dense reading of CLIP as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from twostage.errors import TwostageError
from twostage.readout.knobs import Knobs
from twostage.readout.look import Method, single
from twostage.vocabulary import nearest

BENCHMARKS = ("VOC21", "Context60", "COCO-Object", "VOC20", "Context59", "COCO-Stuff", "Cityscapes", "ADE20K")
LOCAL = Knobs(residual=False, ffn=False)
"""Attention alone, as ClearCLIP and its descendants read the last block."""


@dataclass(frozen=True)
class Preset:
    """One published method.

    title: its name in words; source: paper and where; knobs: how the last block is read; method: what is done
    around that reading; settings: the method's own numbers with their defaults; choices: what a setting in
    words may be; published: mIoU by benchmark; guest: whether it needs a second vision model; regions:
    whether it needs masks; single_pass: whether the tower runs once over the image; note: how ours differs,
    or what the public text leaves open.
    """

    name: str
    title: str
    source: str
    knobs: Knobs
    method: Method = single
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    published: Mapping[str, float] = field(default_factory=dict)
    guest: bool = False
    regions: bool = False
    single_pass: bool = True
    note: str = ""

    def with_settings(self, given: Mapping[str, Any]) -> Preset:
        """The same with some of the method's numbers changed.

        given: by name, in either case.

        Raises:
            TwostageError: the method has no such setting, or it cannot have such a value.
        """
        changed = {name.lower(): value for name, value in given.items()}
        for name, value in changed.items():
            if name not in self.settings:
                raise TwostageError(
                    f"Preset {self.name}: unknown setting {name!r}."
                    + (nearest(name, self.settings) if self.settings else " It has none.")
                )
            allowed = self.choices.get(name, ())
            if allowed and value not in allowed:
                raise TwostageError(
                    f"Preset {self.name}: unknown {name} {value!r}.{nearest(str(value), allowed)}"
                )
            if isinstance(self.settings[name], (int, float)) and not isinstance(value, (int, float)):
                raise TwostageError(f"Preset {self.name}: {name} should be a number, got {value!r}.")
        return replace(self, settings={**self.settings, **changed})

    def facts(self) -> dict[str, Any]:
        """What was read how, for results files: name, knobs and settings as plain data, and 16 hex digits
        over them.
        """
        found = {"preset": self.name, "knobs": asdict(self.knobs), "settings": dict(self.settings)}
        text = json.dumps(found, sort_keys=True, default=str)
        return {**found, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


def figures(*values: float | None) -> dict[str, float]:
    """Published mIoU in the order of BENCHMARKS, None where there is none."""
    return {name: value for name, value in zip(BENCHMARKS, values, strict=True) if value is not None}
