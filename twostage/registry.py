"""Components by name: the file's stem is the name, so a new component is one new file."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from twostage.errors import TwostageError
from twostage.vocabulary import nearest

KINDS = ("proposals", "classifiers", "dense", "ensembles")


class ComponentError(TwostageError):
    """A component or one of its options is unknown, or a package it needs is not installed."""


def names(kind: str) -> list[str]:
    """Every component of one kind, by file name; files that begin with an underscore are helpers."""
    if kind not in KINDS:
        raise ComponentError(f"Unknown kind of component {kind!r}.{nearest(kind, KINDS)}")
    package = importlib.import_module(f"twostage.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> type:
    """The component class called `name`, or one of your own: `your.package.module`, `your.module:Class`.

    Raises:
        ComponentError: no such file or class.
    """
    if "." in name or ":" in name:
        return _dotted(name)
    if name not in names(kind):
        raise ComponentError(f"{kind}: unknown component {name!r}.{nearest(name, names(kind))}")
    return _only_component(importlib.import_module(f"twostage.{kind}.{name}"))


def make_config(component: type, options: Mapping[str, Any]) -> Any:
    """The component's frozen Config from plain options; an unknown option names the nearest known one."""
    config_class: type = component.Config  # type: ignore[attr-defined]
    fields = dataclasses.fields(config_class)
    known = {field.name for field in fields}
    for option in options:
        if option not in known:
            raise ComponentError(f"{component.__name__}: unknown option {option!r}.{nearest(option, known)}")
    for field in fields:
        has_default = not (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if not has_default and field.name not in options:
            raise ComponentError(f"{component.__name__}: the option {field.name!r} has no default: give it.")
    try:
        return config_class(**options)
    except TwostageError:
        raise
    except (TypeError, ValueError) as error:
        raise ComponentError(f"{component.__name__}: an option has an unfit value: {error}") from error


def _dotted(name: str) -> type:
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ComponentError(
            f"{name!r} is no module path: write it as your.package.module or your.package.module:Class."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ComponentError(
            f"Cannot import {module_name!r} ({error}): is it installed, is the name right?"
        ) from error
    if not class_name:
        return _only_component(module)
    if not hasattr(module, class_name):
        raise ComponentError(f"{module_name} has no {class_name!r}.{nearest(class_name, vars(module))}")
    found = getattr(module, class_name)
    if not inspect.isclass(found) or not _has_config(found):
        raise ComponentError(f"{name}: expected a class with a dataclass `Config`, found {found!r}.")
    return found


def _only_component(module: Any) -> type:
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and item.__module__ == module.__name__ and _has_config(item)
    ]
    if len(found) != 1:
        raise ComponentError(
            f"{module.__name__}: expected one class with a Config of its own, found "
            f"{[c.__name__ for c in found]}."
        )
    return found[0]


def _has_config(item: type) -> bool:
    return dataclasses.is_dataclass(getattr(item, "Config", None))
