"""Options given on the command line: `SOLVER.BASE_LR 1e-4` or `solver.base_lr=1e-4`, mixed as you like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from twostage.config.files import parse_yaml
from twostage.config.option import ConfigError

WHERE = "command line"
_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Nested dictionary of what the words set; of two values for one key the later counts.

    Raises:
        ConfigError: a key without a value, or a word that is no key.
    """
    nested: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, text = word.partition("=")
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{WHERE}: {word!r} is no option; write `SECTION.KEY VALUE` or `SECTION.KEY=VALUE`."
            )
        if not equals:
            if not rest:
                raise ConfigError(f"{WHERE}: {key} has no value; write `{key} VALUE` or `{key}=VALUE`.")
            text = rest.pop(0)
        _put(nested, key, parse_value(text, key))
    return nested


def parse_value(text: str, key: str) -> Any:
    """A value as YAML reads it; Python's round brackets make lists too; what is not YAML is a plain word."""
    stripped = text.strip()
    if not stripped:
        return ""  # "PROPOSALS.NAME=" empties a word; null is written out
    if stripped.startswith("(") and stripped.endswith(")"):
        text = f"[{stripped[1:-1]}]"
    if stripped.startswith("!"):
        raise ConfigError(
            f"{WHERE}: {key}: the tag {stripped.split()[0]!r} is not allowed; write plain values only."
        )
    try:
        return parse_yaml(text, WHERE)
    except ConfigError as error:
        if stripped[:1] in "[{(":
            raise ConfigError(
                f"{WHERE}: {key}: cannot read {text!r}: close every bracket and quote."
            ) from error
        return text


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.lower().split(".")
    for name in sections:
        inner = nested.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{WHERE}: {key}: {name.upper()} was given a value already, so nothing fits below it."
            )
        nested = inner
    nested[last] = value
