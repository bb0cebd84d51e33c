"""A preset as plain data: for JSON, and for tables of what there is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from twostage.readout.knobs import Knobs
from twostage.readout.preset import Preset


def describe(preset: Preset) -> dict[str, Any]:
    """All that is known of a preset. "knobs": all; "changed": those that differ from CLIP as trained."""
    knobs, usual = asdict(preset.knobs), asdict(Knobs())
    return {
        "name": preset.name,
        "title": preset.title,
        "source": preset.source,
        "single_pass": preset.single_pass,
        "guest": preset.guest,
        "regions": preset.regions,
        "knobs": _plain(knobs),
        "changed": [name for name, value in knobs.items() if value != usual[name]],
        "settings": _plain(dict(preset.settings)),
        "choices": _plain(dict(preset.choices)),
        "published": dict(preset.published),
        "note": preset.note,
    }


def _plain(value: Any) -> Any:
    """Mappings, lists, numbers and words only."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
