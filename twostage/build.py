"""Whole runs from a configuration: train() and evaluate()."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from twostage import visualize
from twostage.builder import Builder, Trained, shipped
from twostage.clip.precision import has_amx
from twostage.config import Config, ConfigError, SolverConfig
from twostage.data import catalog
from twostage.data.concat import ConcatDataset
from twostage.data.loader import TrainLoader, training_vocabulary
from twostage.data.sample import Sample, SegmentationDataset
from twostage.data.transforms import TrainTransformConfig
from twostage.engine import distributed
from twostage.engine.checkpoint import Checkpointer, CheckpointError
from twostage.engine.distributed import pick_device
from twostage.engine.trainer import Trainer
from twostage.evaluation import provenance, report, runner
from twostage.evaluation.runner import Outcome
from twostage.interfaces import ProposalGenerator
from twostage.maskformer.criterion import Criterion, LossConfig
from twostage.segmenter import Words
from twostage.systems import ENSEMBLE, systems
from twostage.tasks.proposals import ProposalTask
from twostage.types import Segmentation
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)


def train(config: Config, resume: bool = False) -> Path:
    """Train stage one on the seen classes of DATASETS.TRAIN, measure on DATASETS.TEST; gives the weights."""
    if not config.datasets.train:
        raise ConfigError("DATASETS.TRAIN is empty: name the data to train on.")
    if config.model.weights:
        found = str(shipped(config.model.weights))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=found))
    config = dataclasses.replace(config, solver=_settled(config))
    builder = Builder(config)
    parts = [catalog.get(name, config.datasets.root) for name in config.datasets.train]
    dataset = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    tests = [catalog.get(name, config.datasets.root) for name in config.datasets.test]
    vocabulary = training_vocabulary(dataset)
    network = builder.network()
    criterion = Criterion(_losses(config))
    task = ProposalTask(network, criterion, builder.text(vocabulary), vocabulary, config.solver)
    builder.trained = Trained(network, tuple(name for names in vocabulary.names for name in names))
    if tests:  # what the evaluation would refuse is refused now, not after the training
        systems(builder.segmenter(), config.test.systems)
        for test in tests:
            builder.words(test.vocabulary)
    logger.info(
        "Training %s parameters on %s: %d scenes or photos, %d seen classes",
        f"{sum(p.numel() for p in network.parameters() if p.requires_grad):,}",
        dataset.name,
        len(dataset),
        len(vocabulary),
    )

    def measure(iteration: int) -> dict[str, float]:
        return _scalars(_evaluate(builder, tests))

    def batches(start: int) -> TrainLoader:
        return TrainLoader(
            dataset,
            config.solver.ims_per_batch // distributed.world_size(),
            config.seed,
            _transforms(config),
            num_workers=config.dataloader.num_workers,
            start_iteration=start,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    return Trainer(task, batches, config, measure if tests else None).run(resume)


def evaluate(config: Config, resume: bool = False) -> dict[str, Outcome]:
    """Measure all systems on DATASETS.TEST with MODEL.WEIGHTS; resume: OUTPUT_DIR's newest checkpoint."""
    if resume:
        found = Checkpointer(config.output_dir).load_newest()
        if found is None:
            raise CheckpointError(f"OUTPUT_DIR: there is no checkpoint in {config.output_dir} to evaluate.")
        model = dataclasses.replace(config.model, weights=str(found[0]))
        config = dataclasses.replace(config, model=model)
    if not config.datasets.test:
        raise ConfigError("DATASETS.TEST is empty: name at least one data set to evaluate.")
    tests = [catalog.get(name, config.datasets.root) for name in config.datasets.test]
    return _evaluate(Builder(config), tests)


def build_proposals(config: Config) -> ProposalGenerator:
    """Stage one alone."""
    found = Builder(config).proposals()
    if found is None:
        raise ConfigError("PROPOSALS.NAME is empty: name the component that finds masks.")
    return found  # type: ignore[no-any-return]


def _evaluate(builder: Builder, tests: list[SegmentationDataset]) -> dict[str, Outcome]:
    config = builder.config
    segmenter = builder.segmenter()
    compared = systems(segmenter, config.test.systems)
    outcomes = {}
    for dataset in tests:
        words = builder.words(dataset.vocabulary)
        out = Path(config.output_dir, "inference")
        if len(tests) > 1:
            out /= dataset.name.replace("/", "_").replace(":", "_")
        logger.info("Evaluating %d systems on %s", len(compared), dataset.name)
        pictures = _Pictures(out / "overlays", words, config.test.overlays)
        outcome = runner.evaluate(segmenter, dataset, words, compared, config.test.max_images, pictures)
        if distributed.is_main():
            _report(builder, dataset, words, outcome, out)
        outcomes[dataset.name] = outcome
    return outcomes


def _report(
    builder: Builder, dataset: SegmentationDataset, words: Words, outcome: Outcome, out: Path
) -> None:
    rows = [report.row(name, metrics, dataset=dataset.name) for name, metrics in outcome.metrics.items()]
    logger.info("%s, per class:\n%s", dataset.name, report.class_table(rows))
    if outcome.recall:
        logger.info("%s, proposals:\n%s", dataset.name, report.recall_table(outcome.recall))
    rate = outcome.images / max(outcome.seconds, 1e-9)
    logger.info(
        "%s, %d photos, %.1f a second:\n%s", dataset.name, outcome.images, rate, report.summary_table(rows)
    )
    config = builder.config
    path = report.write_results(
        out / "results.json",
        rows,
        provenance.provenance(
            words.vocabulary,
            dataset=dataset.name,
            device=builder.device,
            clip=_clip_facts(builder),
            templates=builder.templates,
            resize_backend="Pillow bilinear on uint8 (photos), torch bicubic (crops)",
            seeds={"run": config.seed},
            config=dataclasses.asdict(config),
        ),
        proposals={name: dataclasses.asdict(recall) for name, recall in outcome.recall.items()},
        images=outcome.images,
        seconds=outcome.seconds,
    )
    logger.info("Results in %s", path)


def _clip_facts(builder: Builder) -> dict[str, Any]:
    options = builder.config.clip
    if options.text_features:
        return {"text_features": options.text_features}
    return {
        "name": builder.clip.name,
        "weights": options.pretrained,
        "digest": builder.clip.digest,
        "dtype": options.dtype,
    }


def _scalars(outcomes: Mapping[str, Outcome]) -> dict[str, float]:
    """The headline numbers for the curves."""
    values = {}
    for dataset, outcome in outcomes.items():
        for system, metrics in outcome.metrics.items():
            for name, value in (("mIoU", metrics.as_dict().get("mIoU")), ("hIoU", metrics.hIoU)):
                if value is not None:
                    values[f"{dataset}/{system}/{name}"] = float(value)
    return values


def _settled(config: Config) -> SolverConfig:
    """SOLVER with AMP auto replaced by what pays on this machine."""
    if config.solver.amp != "auto":
        return config.solver
    device = pick_device(config.model.device)
    fits = torch.cuda.is_bf16_supported() if device.type == "cuda" else has_amx()
    reason = "bf16, the hardware has matrix units for it" if fits else "off, bf16 would be slower"
    logger.info("SOLVER.AMP auto: %s", reason)
    return dataclasses.replace(config.solver, amp="bf16" if fits else "off")


def _losses(config: Config) -> LossConfig:
    known = [field.name for field in dataclasses.fields(LossConfig)]
    for name in config.model.losses:
        if name not in known:
            raise ConfigError(f"MODEL.LOSSES: unknown option {name.upper()}.{nearest(name, known)}")
    try:
        return LossConfig(**config.model.losses)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"MODEL.LOSSES: {error}") from error


def _transforms(config: Config) -> TrainTransformConfig:
    options = config.input
    return TrainTransformConfig(
        short_edges=tuple(options.min_size_train),
        max_size=options.max_size_train,
        crop_size_hw=(options.crop_size, options.crop_size),
        flip=options.flip,
        colour=options.color_jitter,
    )


class _Pictures:
    """Writes photo, truth and ensemble side by side for the first photos of an evaluation."""

    def __init__(self, folder: Path, words: Words, count: int) -> None:
        self._folder, self._words, self._left = folder, words, count if distributed.is_main() else 0

    def __call__(self, sample: Sample, shown: dict[str, Segmentation]) -> None:
        if self._left <= 0:
            return
        self._left -= 1
        labels = shown.get(ENSEMBLE, next(iter(shown.values()))).labels.cpu()
        sheet = visualize.side_by_side(sample.image, sample.labels, labels, self._words.vocabulary)
        visualize.files.write_picture(self._folder / f"{sample.image_id}.png", sheet)
