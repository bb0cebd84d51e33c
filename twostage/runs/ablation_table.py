"""Ablation tables as files: a title, a base configuration, and rows that change some of its options.

    TITLE: Where the masks come from
    ABOUT: CLIP on crops alone, the same prompt everywhere.
    BASE: ../../shapes/zero_shot.yaml
    SET: [MODEL.WEIGHTS=package:shapes]
    SYSTEM: CLIP crops
    COLUMNS: [seen, unseen, hIoU]
    ROWS:
    - {NAME: selective search, SET: [PROPOSALS.NAME=selective_search], PAPER: {hIoU: 11.0}}

BASE, SYSTEM and TRAIN of the table count where a row has none of its own, SET of the row after that of the
table. TRAIN says how a row's files are made: configuration files, options after them, in their order. SWEEP
in place of ROWS makes a row of each value of an option, or of several together that take the same value:
{KEY: ENSEMBLE.OPTIONS.WEIGHT, VALUES: [0.2, 0.8]}. Where TEST.PROTOCOL is set, a row without PAPER gets the
published figure of its dense preset.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from twostage.config import Config, ConfigError, load_config
from twostage.config.files import parse_yaml
from twostage.evaluation.expected import METRICS
from twostage.protocol import published, settled
from twostage.systems import ALL_SYSTEMS, ENSEMBLE
from twostage.vocabulary import nearest

COLUMNS = (*METRICS, "recall_50", "recall_75", "mean_best_iou")
"""What a table can show: metrics of the label maps, then recall of stage one's masks, all in percent."""
TABLE_KEYS = ("title", "about", "base", "set", "system", "train", "columns", "rows", "sweep")
ROW_KEYS = ("name", "base", "set", "system", "paper", "train")


@dataclass(frozen=True)
class Recipe:
    """A training that makes a row's file. words: the options after the configuration file."""

    file: Path
    words: tuple[str, ...]
    config: Config

    @property
    def command(self) -> str:
        """For a shell."""
        return shlex.join(["python", "train_net.py", "--config-file", str(self.file), *self.words])


@dataclass(frozen=True)
class Row:
    """name: unique in its table; config: with all overrides; system: what is measured (twostage.systems);
    paper: column -> percent as published; train: the trainings that make its files, in their order.
    """

    name: str
    config: Config
    system: str = ENSEMBLE
    paper: Mapping[str, float] = field(default_factory=dict)
    train: tuple[Recipe, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table before it is measured. path: its file; columns: of COLUMNS."""

    path: Path
    title: str
    about: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def read_table(path: str | Path, overrides: Sequence[str] = ()) -> Table:
    """Read a table; the overrides count for every row, and after everything the file says.

    Raises:
        ConfigError: unreadable, an unknown key, metric or system (the nearest is named), or a row whose
        configuration is wrong.
    """
    path = Path(path)
    content = _mapping(_read(path), TABLE_KEYS, str(path))
    columns = tuple(str(name) for name in _list(content.get("columns", ["seen", "unseen", "hIoU"]), path))
    for name in columns:
        if name not in COLUMNS:
            raise ConfigError(f"{path}: COLUMNS: unknown metric {name!r}.{nearest(name, COLUMNS)}")
    recipe = cache(partial(_recipe, path.parent))
    rows = [_row(entry, content, path, overrides, recipe) for entry in _entries(content, path)]
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: ROWS: names must differ, but these occur twice: {', '.join(twice)}.")
    title = str(content.get("title", path.stem))
    return Table(path, title, " ".join(str(content.get("about") or "").split()), columns, tuple(rows))


def _entries(content: Mapping[str, Any], path: Path) -> list[Any]:
    """ROWS as they stand, or those that SWEEP stands for."""
    if ("rows" in content) == ("sweep" in content):
        raise ConfigError(f"{path}: expected either ROWS or SWEEP.")
    if "rows" in content:
        return _list(content["rows"], path)
    sweep = _mapping(content["sweep"], ("key", "values", "paper"), f"{path}: SWEEP")
    if not sweep.get("key") or not sweep.get("values"):
        raise ConfigError(f"{path}: SWEEP: expected KEY and VALUES.")
    paper, keys = sweep.get("paper") or {}, _list(sweep["key"], path)
    return [
        {"name": str(value), "set": [f"{key}={value}" for key in keys], "paper": paper.get(value, {})}
        for value in _list(sweep["values"], path)
    ]


def _row(
    entry: Any,
    table: Mapping[str, Any],
    path: Path,
    overrides: Sequence[str],
    recipe: Callable[[str], Recipe],
) -> Row:
    named = entry.get("NAME", entry.get("name", "")) if isinstance(entry, dict) else ""
    where = f"{path}: row {str(named)!r}"
    own = _mapping(entry, ROW_KEYS, where)
    if not named:
        raise ConfigError(f"{where}: every row needs a NAME.")
    base = own.get("base", table.get("base"))
    system = str(own.get("system", table.get("system", ENSEMBLE)))
    if system not in ALL_SYSTEMS:
        raise ConfigError(f"{where}: SYSTEM: unknown system {system!r}.{nearest(system, ALL_SYSTEMS)}")
    words = [str(word) for word in [*_list(table.get("set"), path), *_list(own.get("set"), path), *overrides]]
    trainings = [str(text) for text in _list(own.get("train", table.get("train")), path)]
    try:
        config = settled(load_config(None if base is None else path.parent / str(base), words))
        train = tuple(recipe(text) for text in trainings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if len(config.datasets.test) != 1:
        raise ConfigError(f"{where}: DATASETS.TEST has to name one data set, got {config.datasets.test}.")
    paper = _mapping(own.get("paper") or {}, tuple(name.lower() for name in COLUMNS), f"{where}: PAPER")
    figures = {name: float(paper[name.lower()]) for name in COLUMNS if name.lower() in paper}
    if config.test.protocol and not figures:
        known = published(config)
        figures = {} if known is None else {"mIoU": known}
    return Row(str(named), config, system, figures, train)


def _recipe(folder: Path, text: str) -> Recipe:
    """From "../shapes/prompts.yaml KEY=VALUE ..."."""
    file, *words = shlex.split(text) or [""]
    place = Path(os.path.normpath(folder / file))
    try:
        return Recipe(place, tuple(words), load_config(place, words))
    except ConfigError as error:
        raise ConfigError(f"TRAIN: {error}") from error


def _read(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"Cannot read the table {path}: {reason}.") from error


def _mapping(content: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """The content with lower-case keys, every one known."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected keys such as {known[0].upper()}, got {content!r}.")
    lower = {str(key).lower(): value for key, value in content.items()}
    for key in lower:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key.upper()}.{nearest(key, known)}")
    return lower


def _list(value: Any, path: Path) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, dict):
        raise ConfigError(f"{path}: expected a list, got {value!r}.")
    return value if isinstance(value, list) else [value]
