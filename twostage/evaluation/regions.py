"""CLIP's features of true regions, computed once: CLIP is frozen, so every prompt is judged by them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from twostage.data.region_crops import RegionCutter
from twostage.data.regions import Region, cut_regions
from twostage.data.sample import SegmentationDataset
from twostage.engine import distributed
from twostage.errors import TwostageError
from twostage.evaluation.top_k import TopK, top_k
from twostage.interfaces import ImageTextModel
from twostage.progress import Progress
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionFeatures:
    """features: (N, D) float32 unit rows on the CPU; classes: (N,) int64, positions in the vocabulary."""

    features: Tensor
    classes: Tensor
    vocabulary: Vocabulary
    subsets: Mapping[str, Sequence[int]]

    def judge(self, text: TextBank) -> TopK:
        """How often these regions are named right by the text of the vocabulary."""
        bank = text.to("cpu")
        logits = torch.cat([bank.logits(part) for part in self.features.split(4096)])
        return top_k(logits, self.classes, self.vocabulary, self.subsets)

    def certainty(self, text: TextBank) -> float:
        """Probability given to the true class, percent, mean over classes of the mean over regions."""
        bank = text.to("cpu")
        rows = torch.arange(len(self.classes))
        given = bank.logits(self.features).softmax(dim=1)[rows, self.classes].double()
        return 100 * float(
            torch.stack([given[self.classes == k].mean() for k in self.classes.unique()]).mean()
        )

    def among(self, positions: Sequence[int]) -> RegionFeatures:
        """The regions of these classes, and no other class competing; class numbers follow `positions`."""
        place = torch.full((len(self.vocabulary),), -1)
        place[list(positions)] = torch.arange(len(positions))
        kept = place[self.classes] >= 0
        return RegionFeatures(
            self.features[kept], place[self.classes[kept]], self.vocabulary.subset(positions), {}
        )


def encode_regions(
    clip: ImageTextModel,
    dataset: SegmentationDataset,
    wanted: Mapping[int, Sequence[int] | None],
    cutter: RegionCutter,
    chunk: int = 32,
) -> RegionFeatures:
    """Features of the test crops of `wanted` (see cut_regions), shared among the processes of a run.

    chunk: crops in one pass through CLIP.

    Raises:
        TwostageError: not one region is there.
    """
    photos = list(wanted)[distributed.rank() :: distributed.world_size()]
    mine = {photo: wanted[photo] for photo in photos}
    found: list[Region] = []
    rows: list[Tensor] = []
    progress = Progress(logger, f"{dataset.name}: regions", len(photos))
    for part in _chunks(cut_regions(dataset, mine, cutter), chunk):
        found += [region for region, _ in part]
        rows.append(clip.encode_images(torch.stack([crop for _, crop in part])).cpu())
        progress.at(photos.index(found[-1].photo) + 1)
    given = distributed.all_gather_object((found, torch.cat(rows) if rows else torch.zeros(0, clip.dim)))
    regions = [region for one, _ in given for region in one]
    if not regions:
        raise TwostageError(
            f"{dataset.name}: the photos that were looked at show no region to judge prompts by."
        )
    order = sorted(range(len(regions)), key=regions.__getitem__)
    features = torch.cat([features for _, features in given])[order]
    classes = torch.tensor([regions[i].label for i in order])
    subsets = getattr(dataset, "subsets", {})
    return RegionFeatures(features, classes, dataset.vocabulary, subsets)


def _chunks(items: Iterable[tuple[Region, Tensor]], size: int) -> Iterator[list[tuple[Region, Tensor]]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
