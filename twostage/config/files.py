"""YAML as configuration files use it: plain data only, true and false for booleans, and `_BASE_` files."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from twostage.config.option import ConfigError

BASE_KEY = "_BASE_"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `off` and `no` stay words, `1e-4` is a number, `2020-01-01` a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                key = key.lower()
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


class _Dumper(yaml.SafeDumper):
    """Writes so that _Loader reads the same values back."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
]
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    # Beside YAML 1.1's own: what either version would misread is written in quotes.
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text; a tag of any kind (`!!python/...`) is refused, so no file can run code.

    Raises:
        ConfigError: not YAML, a key twice, or a tag; the message names `where` and the line.
    """
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            tag = getattr(event, "tag", None)
            if tag is not None:
                line = event.start_mark.line + 1
                raise ConfigError(
                    f"{where}, line {line}: the tag {tag!r} is not allowed; write plain values only."
                )
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain data only
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def inline_yaml(value: Any) -> str:
    """One value on one line, in the form that parse_yaml reads back."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def read_layers(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """The file and the files it is based on, the most basic first: (file name for messages, its content).

    `_BASE_` names one file relative to the file that says so.

    Raises:
        ConfigError: a file is missing, not a mapping, or based on itself.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    chain: list[Path] = []
    current: Path | None = Path(path)
    while current is not None:
        if current.resolve() in [earlier.resolve() for earlier in chain]:
            circle = " -> ".join(str(file) for file in [*chain, current])
            raise ConfigError(f"{current}: {BASE_KEY} goes in a circle: {circle}. Remove one of these lines.")
        chain.append(current)
        content = _read_mapping(current, chain)
        base = content.pop(BASE_KEY, None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"{current}: {BASE_KEY} is {base!r}; expected the name of one file.")
        layers.insert(0, (str(current), content))
        current = None if base is None else current.parent / base
    return layers


def _read_mapping(path: Path, chain: list[Path]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        named = f", the {BASE_KEY} of {chain[-2]}" if len(chain) > 1 else ""
        raise ConfigError(f"Cannot read the configuration file {path}{named}: {reason}.") from error
    content = parse_yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections such as `SOLVER:`, got {type(content).__name__}.")
    if {"TITLE", "ROWS"} <= content.keys() or {"TITLE", "SWEEP"} <= content.keys():
        raise ConfigError(f"{path} is an ablation table, no configuration: run `twostage ablation {path}`.")
    return content
