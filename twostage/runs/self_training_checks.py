"""What is refused before self-training spends anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from twostage.builder import Builder
from twostage.checkpoints import open_weights
from twostage.config import Config, ConfigError
from twostage.data.loader import training_vocabulary
from twostage.data.sample import SegmentationDataset
from twostage.engine import distributed
from twostage.network_builder import INSIDE
from twostage.published.recognise import Kind
from twostage.runs.manifest import MANIFEST, StaleError
from twostage.runs.pseudo_labels import kept_flags
from twostage.runs.teaching import dense_alone, is_dense, learner
from twostage.runs.training import refuse_words_inside


def kept_classes(config: Config, dataset: SegmentationDataset) -> tuple[bool, ...]:
    """Which classes keep their ground truth, after everything that can be refused at once has been.

    Raises:
        ConfigError, ComponentError: the options cannot be meant so.
    """
    learner(config)
    kept = kept_flags(config.self_training, dataset.vocabulary)
    if all(kept):
        raise ConfigError(
            f"{dataset.name} has no unseen class, so there is nothing to label. Self-training needs data "
            "whose class list says which classes are seen; train with TASK proposals instead, or set "
            "SELF_TRAINING.KEEP_SEEN false to use no ground truth at all."
        )
    if is_dense(config):
        teacher = dense_alone(config)
        Builder(config).component("ensembles", teacher.ensemble)
    elif not config.self_training.keep_seen and not is_teacher(config):
        raise ConfigError(
            "SELF_TRAINING.KEEP_SEEN false with TEACHER trained: the teacher would be trained on the ground "
            "truth that is not to be used. Set SELF_TRAINING.TEACHER dense, or name a trained network in "
            "MODEL.WEIGHTS."
        )
    training_vocabulary(dataset)
    start = config.self_training.start
    if start not in ("scratch", "teacher") and not Path(start).is_file():
        raise ConfigError(
            f"SELF_TRAINING.START is {start!r}; expected scratch, teacher, or a file with weights."
        )
    is_teacher(config)
    for more in ({"scores": True}, config.self_training.ensemble):  # labelling and the student need these
        slot = dataclasses.replace(config.ensemble, options={**config.ensemble.options, **more})
        Builder(config).component("ensembles", slot)
    return kept


def is_teacher(config: Config) -> bool:
    """Whether MODEL.WEIGHTS is a trained network, not empty nor a backbone to start from.

    Raises:
        ConfigError: a published checkpoint whose CLIP or prompts the student would lose.
    """
    if not config.model.weights:
        return False
    opened = open_weights(config.model.weights)
    if opened.kind is Kind.BACKBONE:
        return False
    inside, words = opened.published, config.clip
    if inside is not None and words.pretrained == INSIDE:
        raise ConfigError(
            f"CLIP.PRETRAINED {INSIDE}: the student's checkpoints hold no CLIP. Name the tag or the file of "
            "the same CLIP (openai for the released checkpoints)."
        )
    refuse_words_inside(opened, words)
    return True


def refuse_leftovers(*folders: Path) -> None:
    """A run that starts anew must not mix with, nor throw away, labels that took hours.

    Raises:
        StaleError: one of the folders holds results.
    """
    for folder in folders:
        if (folder / MANIFEST).is_file():
            raise StaleError(
                f"{folder} holds results of an earlier run. Go on with --resume, remove the folder, or "
                "choose another OUTPUT_DIR."
            )
    distributed.barrier()
