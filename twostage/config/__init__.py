"""Configuration: dataclasses are the schema, YAML files with `_BASE_` and command-line overrides fill it."""

from __future__ import annotations

from twostage.config.load import diff_configs, dump_config, load_config, parse_config
from twostage.config.schema import (
    ClipConfig,
    Config,
    ConfigError,
    DataloaderConfig,
    DatasetsConfig,
    InputConfig,
    ModelConfig,
    SlotConfig,
    SolverConfig,
    TestConfig,
)

__all__ = [
    "ClipConfig",
    "Config",
    "ConfigError",
    "DataloaderConfig",
    "DatasetsConfig",
    "InputConfig",
    "ModelConfig",
    "SlotConfig",
    "SolverConfig",
    "TestConfig",
    "diff_configs",
    "dump_config",
    "load_config",
    "parse_config",
]
