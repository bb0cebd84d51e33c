"""Short names of configurations: what was made under one digest need not be made again."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from twostage.config import Config, ConfigError, dump_config
from twostage.download import digest_of
from twostage.networks import shipped
from twostage.vocabulary import Vocabulary


def measured_config(config: Config) -> Config:
    """The part of a configuration that numbers depend on: no output folder, nothing of a training."""
    fresh = Config()
    kept = {name: getattr(fresh.test, name) for name in ("resume", "save_seconds")}
    return dataclasses.replace(
        config,
        output_dir=fresh.output_dir,
        task=fresh.task,
        datasets=dataclasses.replace(config.datasets, train=[]),
        dataloader=fresh.dataloader,
        solver=fresh.solver,
        prompts=fresh.prompts,
        self_training=fresh.self_training,
        model=dataclasses.replace(config.model, losses={}),
        test=dataclasses.replace(
            config.test, systems=[], overlays=0, expected_results=[], eval_period=0, **kept
        ),
    )


def config_digest(config: Config, *more: str) -> str:
    """16 hex digits over a configuration, the contents of the files it names, and further words."""
    files = [
        f"{text}: {digest_of(found)}" for text in _words(dataclasses.asdict(config)) if (found := _file(text))
    ]
    text = "\n".join([dump_config(config), *sorted(files), *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def classes_digest(vocabulary: Vocabulary) -> str:
    """16 hex digits over all that a vocabulary says: names, flags and ids."""
    return hashlib.sha256(repr(dataclasses.astuple(vocabulary)).encode()).hexdigest()[:16]


def _words(value: Any) -> list[str]:
    """Every string among the values of nested plain data."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in _words(item)]


def _file(text: str) -> Path | None:
    try:
        path = Path(shipped(text))
        return path if text and path.is_file() else None
    except (OSError, ConfigError):  # no path at all
        return None
