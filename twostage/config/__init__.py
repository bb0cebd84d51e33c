"""Configuration: dataclasses are the schema, YAML files with `_BASE_` and command-line overrides fill it."""

from __future__ import annotations

from twostage.config.clsclip import ClsClipConfig
from twostage.config.load import diff_configs, dump_config, load_config, parse_config
from twostage.config.option import ConfigError
from twostage.config.prompts import PromptsConfig
from twostage.config.schema import (
    ClipConfig,
    Config,
    DataloaderConfig,
    DatasetsConfig,
    InputConfig,
    ModelConfig,
    SlotConfig,
)
from twostage.config.self_training import SelfTrainingConfig
from twostage.config.solver import SolverConfig
from twostage.config.test_time import AugConfig, CrfConfig, WindowConfig
from twostage.config.testing import TestConfig

__all__ = [
    "AugConfig",
    "ClipConfig",
    "ClsClipConfig",
    "Config",
    "ConfigError",
    "CrfConfig",
    "DataloaderConfig",
    "DatasetsConfig",
    "InputConfig",
    "ModelConfig",
    "PromptsConfig",
    "SelfTrainingConfig",
    "SlotConfig",
    "SolverConfig",
    "TestConfig",
    "WindowConfig",
    "diff_configs",
    "dump_config",
    "load_config",
    "parse_config",
]
