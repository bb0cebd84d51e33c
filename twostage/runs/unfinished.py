"""Where an evaluation keeps its counts while it is not finished, and what they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twostage.config import Config
from twostage.data.sample import SegmentationDataset
from twostage.engine import distributed
from twostage.evaluation import provenance
from twostage.evaluation.tally import Unfinished
from twostage.runs.digests import classes_digest, config_digest, measured_config
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

ASIDE = ".before"
"""Ending of counts that a later evaluation did not take up."""


def unfinished_in(
    folder: Path,
    config: Config,
    dataset: SegmentationDataset,
    words: Vocabulary,
    systems: Sequence[str],
    device: Any,
) -> Unfinished:
    """This process's file in the folder of results. Without TEST.RESUME, what an earlier evaluation left
    there is put aside. Counts are taken up by as many processes as made them.
    """
    rank, world = distributed.rank(), distributed.world_size()
    facts = facts_of(config, dataset, words, systems) | {
        "processes": world,
        "versions": provenance.versions(),
        "device": provenance.device_name(device),
    }
    kept = Unfinished(folder / f"unfinished_{rank}_of_{world}.npz", facts, config.test.save_seconds)
    if not config.test.resume and kept.path.is_file():
        aside = kept.path.with_suffix(ASIDE)
        kept.path.replace(aside)
        logger.warning(
            "An earlier evaluation was not finished; its counts are now in %s. This one begins anew; with "
            "TEST.RESUME True it would go on.",
            aside,
        )
    others = [path for path in folder.glob("unfinished_*_of_*.npz") if not path.stem.endswith(f"_of_{world}")]
    if config.test.resume and others and not kept.path.is_file():
        logger.warning(
            "%s was left by another number of processes than the %d of now: its counts are not taken up.",
            others[0],
            world,
        )
    return kept


def facts_of(
    config: Config, dataset: SegmentationDataset, words: Vocabulary, systems: Sequence[str]
) -> dict[str, Any]:
    """All that the counts depend on: options and the files they name, classes, systems, photos."""
    test = dataclasses.replace(config.test, max_images=0, on_error="stop")
    options = measured_config(dataclasses.replace(config, test=test))
    ids = getattr(dataset, "image_ids", None)
    photos = "" if ids is None else hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()[:16]
    return {
        "options": config_digest(options),
        "classes": [classes_digest(dataset.vocabulary), classes_digest(words)],
        "systems": list(systems),
        "photos": [dataset.name, len(dataset), config.test.max_images, photos],
    }


def forget(folder: Path) -> None:
    """Removes the files of all processes: the evaluation is finished."""
    for path in [*folder.glob("unfinished_*_of_*.npz"), *folder.glob(f"unfinished_*_of_*{ASIDE}")]:
        path.unlink(missing_ok=True)
