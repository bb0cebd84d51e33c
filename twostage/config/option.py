"""What every option of a run is made of: a typed, documented dataclass field with its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from twostage.errors import TwostageError
from twostage.vocabulary import nearest


class ConfigError(TwostageError):
    """A configuration file or an override is unreadable, unknown, of the wrong type or out of range."""


def option(
    default: Any,
    doc: str,
    *,
    choices: Sequence[str] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> Any:
    """A documented field: `choices` bounds words; `least`, `above` (exclusive), `most` bound numbers."""
    limits = {"doc": doc, "choices": tuple(choices), "least": least, "above": above, "most": most}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=limits)
    return field(default=default, metadata=limits)


def section(kind: type) -> Any:
    """A field that holds a section; the section's docstring is its documentation."""
    return field(default_factory=kind)


def check_value(value: Any, limits: Any, key: str, where: str) -> None:
    """Raises ConfigError when a value (or an element of a list) is outside the limits of its field."""
    for item in value if isinstance(value, list) else [value]:
        if limits.get("choices") and item not in limits["choices"]:
            raise ConfigError(
                f"{where}: {key} is {item!r}; expected one of {', '.join(limits['choices'])}."
                + nearest(str(item), limits["choices"])
            )
        if isinstance(item, bool) or not isinstance(item, (int, float)):
            continue
        if limits.get("least") is not None and not item >= limits["least"]:
            raise ConfigError(f"{where}: {key} is {item}; expected {limits['least']} or more.")
        if limits.get("above") is not None and not item > limits["above"]:
            raise ConfigError(f"{where}: {key} is {item}; expected more than {limits['above']}.")
        if limits.get("most") is not None and not item <= limits["most"]:
            raise ConfigError(f"{where}: {key} is {item}; expected {limits['most']} or less.")
