"""The doors to whole runs: train() and evaluate() from a configuration."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from twostage.builder import Builder
from twostage.config import Config, ConfigError
from twostage.interfaces import ProposalGenerator


def train(config: Config, resume: bool = False) -> Path:
    """Train what TASK says; gives the file with the result."""
    run: Any = importlib.import_module(f"twostage.runs.{config.task}")
    made: Path = run.train(config, resume)
    return made


def evaluate(config: Config, resume: bool = False) -> dict[str, Any]:
    """Measure all systems on DATASETS.TEST with MODEL.WEIGHTS; resume: OUTPUT_DIR's newest checkpoint.

    With TASK prompts: how well CLIP.PROMPT, or CLIP.TEMPLATES, names true regions; resume: OUTPUT_DIR's
    chosen prompt. With TASK clsclip: how well DENSE.NAME finds the pixels of one word at a time.

    Returns:
        The outcome of each data set (twostage.evaluation.runner.Outcome; TopK with TASK prompts; PairMetrics
        of each system with TASK clsclip).
    """
    from twostage.runs import evaluation

    if config.task == "prompts":
        from twostage.runs import prompts

        return dict(prompts.evaluate(config, resume))

    if config.task == "clsclip":
        from twostage.runs import clsclip

        return dict(clsclip.evaluate(config, resume))

    if resume and config.task == "self_training":
        from twostage.runs.self_training import finished

        config = finished(config)
    return dict(evaluation.evaluate(config, resume))


def build_proposals(config: Config) -> ProposalGenerator:
    """Stage one alone."""
    found = Builder(config).proposals()
    if found is None:
        raise ConfigError("PROPOSALS.NAME is empty: name the component that finds masks.")
    return found  # type: ignore[no-any-return]
