"""Training the per-pixel baseline on the seen classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twostage.builder import Builder
from twostage.checkpoints import starting_weights
from twostage.config import Config, ConfigError
from twostage.engine.trainer import Trainer
from twostage.networks import Trained
from twostage.runs.proposals import ready
from twostage.runs.training import Data, refuse_words_inside
from twostage.tasks.per_pixel import PerPixelTask


def train(config: Config, resume: bool = False) -> Path:
    """Train the per-pixel network on the seen classes of DATASETS.TRAIN, measure on DATASETS.TEST.

    Returns:
        The file with the weights, for MODEL.WEIGHTS.

    Raises:
        ConfigError: the evaluation at the end would not use what was trained, or cannot be made.
    """
    config = ready(config)
    data = Data.of(config)
    if data.tests and "per_pixel" not in (config.pixels.name, config.dense.name):
        raise ConfigError(
            f"TASK per_pixel: DATASETS.TEST would be measured without what is trained, PIXELS.NAME is "
            f"{config.pixels.name!r}. Set PIXELS.NAME per_pixel, PROPOSALS.NAME '' and ENSEMBLE.NAME "
            "per_pixel, or leave DATASETS.TEST empty."
        )
    return learn(data, resume)


def learn(data: Data, resume: bool = False, pseudo: Sequence[str] = (), at_end: bool = True) -> Path:
    """Train the per-pixel network on `data`, whose configuration is `ready`; gives the weights.

    pseudo, at_end: as for stage one (`twostage.runs.proposals.learn`).
    """
    config = data.config
    builder = Builder(config)
    if not resume:
        refuse_words_inside(builder.weights, config.clip)
    network = builder.pixel_network()
    text = builder.stage_one_text(data.vocabulary)
    task = PerPixelTask(network, text, data.vocabulary, config.solver, pseudo)
    builder.trained_pixels = Trained(network, data.vocabulary.every_name)
    data.refuse_what_evaluation_would(builder)
    data.announce(network)
    measure = data.measure(builder, at_end)
    return Trainer(task, data.batches, config, measure, starting_weights(network)).run(resume)
