"""Whether regions are named right: top-1 and top-5 over all regions, by class, and for seen and unseen apart.

All K classes compete for every region; a set of classes is judged on its own regions. "Mean" is over classes,
so that rare ones count like frequent ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.evaluation.metrics import harmonic_mean
from twostage.vocabulary import Vocabulary

DEPTHS = (1, 5)


@dataclass(frozen=True)
class RegionScore:
    """regions: their number; top1, top5: over regions; mean_: over classes; in percent, or None."""

    regions: int
    top1: float | None
    top5: float | None
    mean_top1: float | None
    mean_top5: float | None


@dataclass(frozen=True)
class ClassRate:
    """One class: its regions, and the percent of them named right at first, or among the first five."""

    name: str
    seen: bool | None
    regions: int
    top1: float | None
    top5: float | None


@dataclass(frozen=True)
class TopK:
    """overall: every class; seen, unseen: None without flags; subsets: named sets; classes: in order."""

    overall: RegionScore
    seen: RegionScore | None
    unseen: RegionScore | None
    subsets: dict[str, RegionScore]
    classes: tuple[ClassRate, ...]

    @property
    def harmonic(self) -> float | None:
        """Harmonic mean of the seen and the unseen classes' mean top-1."""
        if self.seen is None or self.unseen is None:
            return None
        return harmonic_mean(self.seen.mean_top1, self.unseen.mean_top1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "classes": [asdict(one) for one in self.classes], "harmonic": self.harmonic}


def rank_of_truth(logits: Tensor, classes: Tensor) -> Tensor:
    """logits: (N, K), classes: (N,) int64 -> (N,) int64: how many classes score above the true one.

    A class that ties with the true one counts as above it if it comes first, as in a stable sort.

    Raises:
        LabelError: a class outside 0..K-1, or scores that are not finite.
    """
    if not torch.isfinite(logits).all():
        raise LabelError("Region scores: a score is not finite, so regions cannot be ranked.")
    if len(classes) and (int(classes.min()) < 0 or int(classes.max()) >= logits.shape[1]):
        raise LabelError(
            f"Region scores: expected classes in 0..{logits.shape[1] - 1}, got {classes.unique()}."
        )
    own = logits.gather(1, classes[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < classes[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


def top_k(
    logits: Tensor,
    classes: Tensor,
    vocabulary: Vocabulary,
    subsets: Mapping[str, Sequence[int]] | None = None,
) -> TopK:
    """logits: (N, K) of N regions, classes: (N,) the true class of each; subsets: name -> class positions.

    Raises:
        LabelError: see rank_of_truth; or another number of columns than the vocabulary has classes.
    """
    count = len(vocabulary)
    if logits.ndim != 2 or logits.shape[1] != count:
        raise LabelError(f"Region scores: expected (N, {count}), got {tuple(logits.shape)}.")
    ranks = rank_of_truth(logits, classes)
    total = torch.bincount(classes, minlength=count).cpu()
    hits = {depth: torch.bincount(classes[ranks < depth], minlength=count).cpu() for depth in DEPTHS}

    def score(chosen: Sequence[int]) -> RegionScore:
        index = torch.tensor(list(chosen), dtype=torch.long)
        regions = total[index]
        there = regions > 0
        if not there.any():
            return RegionScore(0, None, None, None, None)
        right = [hits[depth][index][there].double() for depth in DEPTHS]
        plain = [100 * float(one.sum() / regions.sum()) for one in right]
        means = [100 * float((one / regions[there]).mean()) for one in right]
        return RegionScore(int(regions.sum()), plain[0], plain[1], means[0], means[1])

    flags = vocabulary.seen
    rates = [score([position]) for position in range(count)]
    return TopK(
        overall=score(range(count)),
        seen=None if flags is None else score([k for k in range(count) if flags[k]]),
        unseen=None if flags is None else score([k for k in range(count) if not flags[k]]),
        subsets={name: score(chosen) for name, chosen in (subsets or {}).items()},
        classes=tuple(
            ClassRate(name, None if flags is None else flags[k], rate.regions, rate.top1, rate.top5)
            for k, (name, rate) in enumerate(zip(vocabulary.shown, rates, strict=True))
        ),
    )
