"""Training stage one on the seen classes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from twostage.builder import Builder
from twostage.checkpoints import starting_weights
from twostage.config import Config, ConfigError
from twostage.engine.trainer import Trainer
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.networks import Trained, shipped
from twostage.runs.training import Data, refuse_words_inside, settled
from twostage.tasks.proposals import ProposalTask
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)


def train(config: Config, resume: bool = False) -> Path:
    """Train stage one on the seen classes of DATASETS.TRAIN, measure on DATASETS.TEST; gives the weights."""
    return learn(Data.of(ready(config)), resume)


def ready(config: Config) -> Config:
    """The same with MODEL.WEIGHTS as a file and SOLVER.AMP decided."""
    if config.model.weights:
        found = str(shipped(config.model.weights))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=found))
    return settled(config)


def learn(data: Data, resume: bool = False, pseudo: Sequence[str] = (), at_end: bool = True) -> Path:
    """Train stage one on `data`, whose configuration is `ready`; gives the weights.

    pseudo: names of the classes whose labels come from a model, for the checkpoint; at_end: measure on
    DATASETS.TEST at the end too, and not only as TEST.EVAL_PERIOD says.
    """
    config = data.config
    builder = Builder(config)
    if not resume:
        refuse_words_inside(builder.weights, config.clip)
    network = builder.network()
    text = builder.stage_one_text(data.vocabulary)
    task = ProposalTask(network, Criterion(_losses(config)), text, data.vocabulary, config.solver, pseudo)
    builder.trained = Trained(network, data.vocabulary.every_name)
    data.refuse_what_evaluation_would(builder)
    data.announce(network)
    measure = data.measure(builder, at_end)
    return Trainer(task, data.batches, config, measure, starting_weights(network)).run(resume)


def _losses(config: Config) -> LossConfig:
    known = [field.name for field in dataclasses.fields(LossConfig)]
    for name in config.model.losses:
        if name not in known:
            raise ConfigError(f"MODEL.LOSSES: unknown option {name.upper()}.{nearest(name, known)}")
    try:
        return LossConfig(**config.model.losses)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.LOSSES: {error}") from error
