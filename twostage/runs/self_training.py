"""Self-training in one go: a teacher, its labels for the unseen classes, a student that learns from them.

After section 3.4 of "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained
Vision-language Model" (Xu et al., ECCV 2022), and MaskCLIP+ with dense CLIP as the teacher
(`twostage.runs.teaching`). OUTPUT_DIR/teacher, labels and student hold one step each; every step, and
what is finished within one, is kept when the run is resumed. Further rounds are labels_2 and student_2.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twostage.builder import Builder
from twostage.config import Config, SolverConfig, dump_config
from twostage.data.atomic import replacing
from twostage.data.pseudo import PseudoLabelled, evenly
from twostage.data.sample import SegmentationDataset
from twostage.download import digest_of
from twostage.engine import distributed
from twostage.evaluation import expected, report
from twostage.runs import evaluation, proposals
from twostage.runs.manifest import MANIFEST, claim, label_facts
from twostage.runs.pseudo_labels import count, label_photos
from twostage.runs.self_training_checks import is_teacher, kept_classes, refuse_leftovers
from twostage.runs.self_training_report import Round, write_report
from twostage.runs.teaching import dense_alone, is_dense, learner
from twostage.runs.training import Data
from twostage.systems import ALL_SYSTEMS

logger = logging.getLogger(__name__)

MAPS = "maps"
COUNTS = "counts.json"
MEASURED = "measured.json"


def train(config: Config, resume: bool = False) -> Path:
    """Teacher (trained, MODEL.WEIGHTS or dense CLIP), labels, student, all measured; gives the last weights.

    Raises:
        ConfigError: the options cannot be meant so. StaleError: OUTPUT_DIR holds the steps of another run.
        TrainingInterrupted: a signal asked to stop; --resume goes on.
    """
    config = proposals.ready(config)
    data = Data.of(config)
    kept = kept_classes(config, data.train)
    measured = config.test.systems or ALL_SYSTEMS
    expected.parse(config.test.expected_results, [test.name for test in data.tests], measured)
    if not resume:
        refuse_leftovers(step(config, "labels"), step(config, "student"))
    teacher = _teacher(data, resume)
    systems = {"teacher": _rows(teacher, data.tests)}
    rounds = []
    for number in range(1, config.self_training.rounds + 1):
        photos, counts = _labels(teacher, data.train, kept, step(config, "labels", number))
        teacher = _student(config, teacher, data, photos, kept, number, resume)
        rounds.append(Round(number, counts))
        systems[_numbered("student", number)] = _rows(teacher, data.tests)
    if distributed.is_main():
        write_report(config, data.train, systems, rounds)
    return Path(teacher.model.weights)


def finished(config: Config) -> Config:
    """The configuration that measures the last student of a run in OUTPUT_DIR."""
    number = max(
        (n for n in range(1, config.self_training.rounds + 1) if step(config, "student", n).is_dir()),
        default=1,
    )
    return _of_student(config, step(config, "student", number))


def step(config: Config, name: str, number: int = 1) -> Path:
    """The folder of a step: labels, student, labels_2, student_2, ..."""
    return Path(config.output_dir, _numbered(name, number))


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _teacher(data: Data, resume: bool) -> Config:
    """The teacher's configuration: MODEL.WEIGHTS is its file, if it has one, OUTPUT_DIR its folder."""
    config, folder = data.config, Path(data.config.output_dir, "teacher")
    # TEST.EXPECTED_RESULTS speaks of the result, the student.
    test = dataclasses.replace(config.test, expected_results=[])
    own = dataclasses.replace(config, output_dir=str(folder), test=test)
    if is_dense(config):
        logger.info("Teacher: dense CLIP (%s) alone, nothing is trained", config.dense.name)
        return dense_alone(own)
    if is_teacher(config):
        logger.info("Teacher: %s is given by MODEL.WEIGHTS, so none is trained", config.model.weights)
        return own
    logger.info("Teacher: training on the seen classes in %s", folder)
    weights = learner(own)(dataclasses.replace(data, config=own), resume, at_end=False)
    return _with_weights(own, str(weights))


def _labels(
    teacher: Config, dataset: SegmentationDataset, kept: Sequence[bool], folder: Path
) -> tuple[PseudoLabelled, dict[str, Any]]:
    """The photos with their labels, made where they are missing, and what was counted in them."""
    indices = evenly(len(dataset), teacher.self_training.max_images)
    claim(folder, label_facts(teacher, dataset, indices), f"{MAPS}/*.png")
    label_photos(teacher, dataset, indices, folder / MAPS)
    photos = PseudoLabelled(dataset, folder / MAPS, indices)
    counts = _kept(folder / COUNTS)
    if counts is None:
        counts = count(photos, kept)
        _keep(folder / COUNTS, counts)
    return photos, counts


def _student(
    config: Config,
    teacher: Config,
    data: Data,
    photos: PseudoLabelled,
    kept: Sequence[bool],
    number: int,
    resume: bool,
) -> Config:
    """The configuration of the trained student."""
    folder = step(config, "student", number)
    start = _start(config, teacher)
    own = _with_weights(_of_student(config, folder), start)
    own = dataclasses.replace(own, solver=_solver(config, number))
    labels = step(config, "labels", number) / MANIFEST
    claim(
        folder,
        {"labels": digest_of(labels), "start": digest_of(Path(start)) if start else "scratch"},
        "*.pth",
    )
    taught = Data(own, photos, data.tests, photos.vocabulary)
    made = [name for name, flag in zip(photos.vocabulary.shown, kept, strict=True) if not flag]
    logger.info("Student: training on all classes in %s, from %s", folder, start or "fresh weights")
    return _with_weights(own, str(learner(own)(taught, resume, made, at_end=False)))


def _start(config: Config, teacher: Config) -> str:
    """The file that a student starts from; empty for fresh weights."""
    fresh = config.model.weights if is_dense(config) or not is_teacher(config) else ""
    wanted = config.self_training.start
    # Dense CLIP has no weights to go on from: its student begins as one from scratch does.
    return {"scratch": fresh, "teacher": teacher.model.weights or fresh}.get(wanted, wanted)


def _solver(config: Config, number: int) -> SolverConfig:
    """How the student of a round is trained; the first one of dense CLIP may have a shorter course."""
    options, solver = config.self_training, config.solver
    guided = options.guided_iter if number == 1 and is_dense(config) else 0
    return dataclasses.replace(
        solver,
        max_iter=guided or options.max_iter or solver.max_iter,
        base_lr=options.base_lr or solver.base_lr,
    )


def _of_student(config: Config, folder: Path) -> Config:
    """The student's output folder and ensemble."""
    options = {**config.ensemble.options, **config.self_training.ensemble}
    ensemble = dataclasses.replace(config.ensemble, options=options)
    return dataclasses.replace(config, output_dir=str(folder), ensemble=ensemble)


def _with_weights(config: Config, weights: str) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=weights))


def _rows(config: Config, tests: list[SegmentationDataset]) -> list[dict[str, Any]]:
    """Rows of every system on DATASETS.TEST, kept in OUTPUT_DIR, measured anew for other weights."""
    if not tests:
        return []
    weights = config.model.weights
    anywhere = dataclasses.replace(config, output_dir="", model=dataclasses.replace(config.model, weights=""))
    made_with = {"sha256": digest_of(Path(weights)) if weights else "", "config": dump_config(anywhere)}
    path = Path(config.output_dir, MEASURED)
    kept = _kept(path)
    distributed.barrier()  # nobody writes before everybody has looked
    if kept is not None and kept["made_with"] == made_with:
        logger.info("%s was measured already", weights or "The teacher")
        return list(kept["rows"])
    outcomes = evaluation.measure(Builder(config), tests)
    rows = [
        report.row(system, metrics, dataset=dataset)
        for dataset, outcome in outcomes.items()
        for system, metrics in outcome.metrics.items()
    ]
    _keep(path, {"made_with": made_with, "rows": rows})
    return rows


def _kept(path: Path) -> Any:
    """What _keep wrote, or None."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _keep(path: Path, content: Any) -> None:
    if distributed.is_main():
        with replacing(path) as stream:
            stream.write(json.dumps(content, indent=1).encode())
    distributed.barrier()
