"""The temperature of dense CLIP against crops, found on photos without labels.

Cosines of patches spread less than those of whole crops, so one softmax at one scale takes them for more
doubtful, or less, than they are. The temperature found here gives the dense logits, pooled under masks, the
mean entropy that the crops' have (section I of the dense family's formulas); no label is read.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from twostage.builder import Builder
from twostage.config import Config, ConfigError
from twostage.data import catalog
from twostage.data.sample import SegmentationDataset
from twostage.ops.entropy import matching_temperature, mean_entropy
from twostage.ops.fusion import pool_logits
from twostage.segmenter import Segmenter, Words

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """temperature: for ENSEMBLE.OPTIONS.DENSE_TEMPERATURE; entropy_regions: mean entropy of the classifier's
    probabilities, in nats; entropy_before, entropy_after: of the pooled dense ones at temperature 1 and at
    the one found; photos, regions: how many were looked at; classes: how many competed; dataset: its name.
    """

    temperature: float
    entropy_regions: float
    entropy_before: float
    entropy_after: float
    photos: int
    regions: int
    classes: int
    dataset: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for a JSON file."""
        return asdict(self)

    def report(self) -> str:
        """What was found, in three lines."""
        return (
            f"Mean entropy over {self.regions} masks of {self.photos} photos of {self.dataset}, "
            f"{self.classes} classes:\n"
            f"  regions {self.entropy_regions:.4f} nats; dense {self.entropy_before:.4f} at temperature 1, "
            f"{self.entropy_after:.4f} at {self.temperature:.4g}\n"
            f"  ENSEMBLE.OPTIONS.DENSE_TEMPERATURE {self.temperature:.4g}"
        )


def calibrate(config: Config, photos: int = 32, dataset: str = "") -> Calibration:
    """Looks at the first `photos` photos of a data set with the parts of `config`.

    dataset: its name; empty for the first of DATASETS.TRAIN, or of DATASETS.TEST where that is empty. Labels
    are not looked at.

    Raises:
        ConfigError: there is no data set, no stage one, no classifier or no dense head, or photos is below 1.
        TwostageError: no mask holds anything, or no temperature fits.
    """
    name = dataset or next(iter((*config.datasets.train, *config.datasets.test)), "")
    _require(config, name, photos)
    builder = Builder(config)
    data = catalog.get(name, config.datasets.root)
    regions, pooled, seen = gather(
        builder.segmenter().for_any_ensemble(), data, builder.words(data.vocabulary), photos
    )
    found = match(regions, pooled, seen, name)
    logger.info("%s", found.report())
    return found


def gather(
    segmenter: Segmenter, data: SegmentationDataset, words: Words, photos: int
) -> tuple[Tensor, Tensor, int]:
    """(R, K) logits of the classifier and (R, K) of the dense map pooled under the same masks, those that
    both know, and how many photos were looked at.
    """
    regions, pooled = list[Tensor](), list[Tensor]()
    count = min(photos, len(data))
    for index in range(count):
        [evidence] = segmenter.gather([data[index].image], words)
        assert evidence.proposals is not None
        assert evidence.regions is not None
        assert evidence.dense is not None
        masks = evidence.proposals.masks
        logits, held = pool_logits(evidence.dense.logits.to(masks.device), masks)
        both = held & evidence.regions.valid.to(held.device)
        regions.append(evidence.regions.logits.to(held.device)[both].cpu())
        pooled.append(logits[both].cpu())
    none = torch.zeros(0, len(words.vocabulary))
    return torch.cat([none, *regions]), torch.cat([none, *pooled]), count


def match(regions: Tensor, pooled: Tensor, photos: int, dataset: str) -> Calibration:
    """The temperature at which the pooled logits (R, K) are as spread as those of the regions (R, K)."""
    # matching_temperature refuses what has no rows, so a mean over none is never reported
    target = mean_entropy(regions)
    temperature = matching_temperature(pooled, target)
    return Calibration(
        temperature=temperature,
        entropy_regions=target,
        entropy_before=mean_entropy(pooled),
        entropy_after=mean_entropy(pooled, temperature),
        photos=photos,
        regions=len(regions),
        classes=regions.shape[1],
        dataset=dataset,
    )


def _require(config: Config, name: str, photos: int) -> None:
    if photos < 1:
        raise ConfigError(f"Calibration: expected at least one photo, got {photos}.")
    if not name:
        raise ConfigError(
            "Calibration needs photos: name a data set in DATASETS.TRAIN or DATASETS.TEST (a folder of "
            "photos is folder:PATH)."
        )
    slots = {"PROPOSALS": config.proposals, "CLASSIFIER": config.classifier, "DENSE": config.dense}
    for slot, options in slots.items():
        if not options.name:
            raise ConfigError(
                f"Calibration compares the dense map with the classifier under stage one's masks, and "
                f"{slot}.NAME is empty: set it."
            )
