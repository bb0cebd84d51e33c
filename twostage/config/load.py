"""From files and overrides to a validated Config, and back to text."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twostage.config.files import inline_yaml, parse_yaml, read_layers
from twostage.config.option import ConfigError, check_value
from twostage.config.overrides import WHERE, parse_overrides
from twostage.config.schema import SLOTS, Config
from twostage.vocabulary import nearest


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The defaults, then the file with its `_BASE_` files, then the overrides.

    Raises:
        ConfigError: unreadable file, unknown key (the nearest known is named), wrong type or range.
    """
    layers = [] if path is None else read_layers(path)
    return _merge([*layers, (WHERE, parse_overrides(overrides))])


def parse_config(text: str, where: str = "configuration", overrides: Sequence[str] = ()) -> Config:
    """A Config from the text that dump_config wrote, as found in `config.yaml` or a checkpoint; then the
    overrides.
    """
    content = parse_yaml(text, where) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected sections such as `SOLVER:`, got {type(content).__name__}.")
    return _merge([(where, content), (WHERE, parse_overrides(overrides))])


def dump_config(config: Config, comments: bool = False) -> str:
    """YAML text of every option; load_config reads an equal Config back. `comments` explains each option."""
    return "\n".join(_section(config, "", comments)) + "\n"


def _section(node: Any, indent: str, comments: bool) -> list[str]:
    lines: list[str] = []
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if not dataclasses.is_dataclass(value):
            lines += _lines(field, value, indent, comments)
            continue
        if comments:
            doc = field.metadata.get("doc") or (type(value).__doc__ or "").splitlines()[0]
            lines += ["", f"{indent}# {doc}"]
        lines.append(f"{indent}{field.name.upper()}:")
        lines += _section(value, f"{indent}  ", comments)
    return lines


def diff_configs(first: Config, second: Config) -> list[str]:
    """Lines such as `SOLVER.BASE_LR: 0.0001 -> 0.0002`, one for each option that differs."""
    before, after = _flat(dataclasses.asdict(first)), _flat(dataclasses.asdict(second))
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, absent) != after.get(key, absent)
    ]


def _merge(layers: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    merged = _defaults()
    for where, content in layers:
        known = _checked(content, Config, (), where)
        for slot in SLOTS:
            _forget_other_options(merged, known, slot)
        try:
            merged = typing.cast(DictConfig, OmegaConf.merge(merged, known))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {_explain(error)}") from error
        except TypeError as error:  # a list met a mapping
            raise ConfigError(
                f"{where}: a list where options belong, or the other way round: {error}."
            ) from error
        _check_limits(OmegaConf.to_object(merged), (), where)
    return typing.cast(Config, OmegaConf.to_object(merged))


def _defaults() -> DictConfig:
    """The default values, open to merging: OmegaConf makes what comes from a frozen class read-only."""
    defaults = OmegaConf.structured(Config)
    _open(defaults)
    return typing.cast(DictConfig, defaults)


def _open(node: Any) -> None:
    OmegaConf.set_readonly(node, False)
    for inner in node.values():
        if isinstance(inner, DictConfig):
            _open(inner)


def _forget_other_options(merged: DictConfig, layer: Mapping[str, Any], slot: str) -> None:
    """A layer that names another component starts from its defaults, not from its predecessor's options."""
    name = layer.get(slot, {}).get("name")
    if name is not None and name != merged[slot].name:
        merged[slot].options = {}


def _checked(content: Mapping[Any, Any], schema: type, path: tuple[str, ...], where: str) -> dict[str, Any]:
    """The content with lower-case keys, every key known, a single value in place of a list made a list."""
    hints = typing.get_type_hints(schema)
    result: dict[str, Any] = {}
    for raw, value in content.items():
        name = str(raw).lower()
        key = ".".join((*path, str(raw))).upper()
        if name not in hints:
            raise ConfigError(f"{where}: unknown option {key}.{nearest(key, _candidates(schema, path))}")
        kind = hints[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key} is a section; expected options below it, got {value!r}.")
            value = _checked(value, typing.cast(type, kind), (*path, name), where)
        elif typing.get_origin(kind) is dict:
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key}: expected options below it, got {value!r}.")
            value = _lower_keys(value)
        elif typing.get_origin(kind) is list:
            if isinstance(value, dict):
                raise ConfigError(f"{where}: {key}: expected a list, got {value!r}.")
            value = value if isinstance(value, list) else [value]
            if typing.get_args(kind) != (Any,) and any(isinstance(item, (list, dict)) for item in value):
                raise ConfigError(f"{where}: {key}: expected a plain list, got {value!r}.")
        if "${" in str(value):
            raise ConfigError(f"{where}: {key}: `${{...}}` is not supported; write the value itself.")
        result[name] = value
    return result


def _candidates(schema: type, path: tuple[str, ...]) -> list[str]:
    """What a misspelt key may have meant: its neighbours, and on the top level every option there is."""
    if not path:
        return [*_flat(dataclasses.asdict(Config())), *(f.name.upper() for f in dataclasses.fields(Config))]
    return [".".join((*path, f.name)).upper() for f in dataclasses.fields(schema)]


def _lower_keys(value: Any) -> Any:
    """Component options are field names of Python classes, which are lower case."""
    if isinstance(value, dict):
        return {str(key).lower(): _lower_keys(inner) for key, inner in value.items()}
    return [_lower_keys(inner) for inner in value] if isinstance(value, list) else value


def _explain(error: OmegaConfBaseException) -> str:
    key = str(error.full_key or "")
    kind: Any = Config
    for part in key.split("[")[0].split("."):
        kind = typing.get_type_hints(kind)[part]
    expected = str(kind) if typing.get_origin(kind) else getattr(kind, "__name__", str(kind))
    found = str(error.msg).splitlines()[0].rstrip(".")
    return f"{key.upper()}: expected {expected}; {found}."


def _check_limits(node: Any, path: tuple[str, ...], where: str) -> None:
    for field in dataclasses.fields(node):
        value, here = getattr(node, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            _check_limits(value, here, where)
        else:
            check_value(value, field.metadata, ".".join(here).upper(), where)


def _lines(field: dataclasses.Field[Any], value: Any, indent: str, comments: bool) -> list[str]:
    line = f"{indent}{field.name.upper()}: {inline_yaml(value)}"
    if not comments:
        return [line]
    doc = field.metadata["doc"]
    if field.metadata["choices"]:
        doc += f" ({', '.join(field.metadata['choices'])})"
    wrapped = textwrap.wrap(doc, 108 - len(indent))
    return [*(f"{indent}# {part}" for part in wrapped), line]


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"SOLVER.BASE_LR": 0.0001, ...}"""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        key = f"{prefix}{name.upper()}"
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{key}.")
        else:
            flat[key] = value
    return flat
