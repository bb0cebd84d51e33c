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
    """Every component of one kind, by file name; files that begin with an underscore are helpers, not components."""
    if kind not in KINDS:
        raise ComponentError(f"Unknown kind of component {kind!r}.{nearest(kind, KINDS)}")
    package = importlib.import_module(f"twostage.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> type:
    """The component class called `name`; `your.package.module` or `your.package.module:Class` names one of your own.

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
    config_class = component.Config  # type: ignore[attr-defined]
    known = {field.name for field in dataclasses.fields(config_class)}
    for option in options:
        if option not in known:
            raise ComponentError(f"{component.__name__}: unknown option {option!r}.{nearest(option, known)}")
    return config_class(**options)


def _dotted(name: str) -> type:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ComponentError(f"Cannot import {module_name!r} ({error}): is it installed, is the name right?") from error
    if not class_name:
        return _only_component(module)
    if not hasattr(module, class_name):
        raise ComponentError(f"{module_name} has no {class_name!r}.{nearest(class_name, vars(module))}")
    return getattr(module, class_name)  # type: ignore[no-any-return]


def _only_component(module: Any) -> type:
    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and item.__module__ == module.__name__ and hasattr(item, "Config")
    ]
    if len(found) != 1:
        raise ComponentError(
            f"{module.__name__}: expected one class with a Config of its own, found {[c.__name__ for c in found]}."
        )
    return found[0]
