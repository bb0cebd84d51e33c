"""What every training on label maps shares: data, checks before it starts, the evaluation at its end."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from twostage.builder import Builder
from twostage.checkpoints import Weights
from twostage.clip.precision import has_amx
from twostage.config import ClipConfig, Config, ConfigError
from twostage.data import catalog
from twostage.data.concat import ConcatDataset
from twostage.data.loader import TrainLoader, training_vocabulary
from twostage.data.sample import SegmentationDataset
from twostage.data.transforms import TrainTransformConfig
from twostage.engine import distributed
from twostage.engine.distributed import pick_device
from twostage.runs import evaluation
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """The data of a training. vocabulary: the seen classes, which alone are learned."""

    config: Config
    train: SegmentationDataset
    tests: list[SegmentationDataset]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, config: Config) -> Data:
        """DATASETS.TRAIN as one set, and the sets of DATASETS.TEST.

        Raises:
            ConfigError: DATASETS.TRAIN is empty. DatasetError: a set is unknown or not usable.
        """
        names, root = config.datasets, config.datasets.root
        if not names.train:
            raise ConfigError("DATASETS.TRAIN is empty: name the data to train on.")
        parts = [catalog.get(name, root) for name in names.train]
        whole = parts[0] if len(parts) == 1 else ConcatDataset(parts)
        return cls(
            config, whole, [catalog.get(name, root) for name in names.test], training_vocabulary(whole)
        )

    def refuse_what_evaluation_would(self, builder: Builder) -> None:
        """Raises now what the evaluation would raise after the training."""
        if not self.tests:
            return
        evaluation.comparison(builder, self.tests)
        for test in self.tests:
            builder.words(test.vocabulary)

    def announce(self, network: nn.Module) -> None:
        """One line on what is trained with what."""
        logger.info(
            "Training %s parameters on %s: %d scenes or photos, %d seen classes",
            f"{sum(p.numel() for p in network.parameters() if p.requires_grad):,}",
            self.train.name,
            len(self.train),
            len(self.vocabulary),
        )

    def batches(self, start: int) -> TrainLoader:
        """Endless batches of this process from update `start` on."""
        config = self.config
        return TrainLoader(
            self.train,
            config.solver.ims_per_batch // distributed.world_size(),
            config.seed,
            _transforms(config),
            num_workers=config.dataloader.num_workers,
            start_iteration=start,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def measure(self, builder: Builder, at_end: bool = True) -> Callable[[int], Mapping[str, float]] | None:
        """What the trainer calls to evaluate; None where DATASETS.TEST is empty.

        at_end: after the last update too; otherwise nothing is measured then, for somebody else does it.
        """
        if not self.tests:
            return None
        last = self.config.solver.max_iter - 1

        def measured(iteration: int) -> Mapping[str, float]:
            if iteration == last and not at_end:
                return {}
            return evaluation.scalars(evaluation.measure(builder, self.tests))

        return measured


def refuse_words_inside(opened: Weights | None, clip: ClipConfig) -> None:
    """A training's checkpoints hold no prompts: with those inside a published one to start from, the words of
    the training would be others than those of a later evaluation, in silence.

    Raises:
        ConfigError: there are learned prompts inside, and CLIP.PROMPT does not name them.
    """
    inside = None if opened is None else opened.published
    if inside is None or (inside.prompt is None and inside.region_prompt is None):
        return
    if not (clip.prompt or clip.text_features):
        raise ConfigError(
            f"{inside.report.where} has learned prompts inside, which the checkpoints of a training have "
            "not. Name the file in CLIP.PROMPT too, so that what is trained stays with the same words."
        )


def settled(config: Config) -> Config:
    """The same with SOLVER.AMP auto replaced by what pays on this machine."""
    if config.solver.amp != "auto":
        return config
    device = pick_device(config.model.device)
    fits = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_amx()
    reason = "bf16, the hardware has matrix units for it" if fits else "off, bf16 would be slower"
    logger.info("SOLVER.AMP auto: %s", reason)
    solver = dataclasses.replace(config.solver, amp="bf16" if fits else "off")
    return dataclasses.replace(config, solver=solver)


def _transforms(config: Config) -> TrainTransformConfig:
    options = config.input
    return TrainTransformConfig(
        short_edges=tuple(options.min_size_train),
        max_size=options.max_size_train,
        crop_size_hw=(options.crop_size, options.crop_size),
        flip=options.flip,
        colour=options.color_jitter,
    )
