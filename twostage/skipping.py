"""Stage two on fewer masks: copies of others, masks that win no pixel, and masks that cannot matter.

N masks of one photo. Masks that are not shown to the classifier are valid and have an even opinion of all
classes, or that of the mask whose copy they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.interfaces import BoundingEnsemble, Ensemble, LabelBounds, RegionClassifier
from twostage.ops.mask_overlap import pairwise_iou
from twostage.ops.masks import binarise
from twostage.types import Evidence, Proposals, RegionScores, TextBank
from twostage.vocabulary import Vocabulary

STRIDE = 4
"""Of the pixels that masks are compared at."""
COARSE = 8
"""Of the pixels that are asked first which masks matter."""
AT_ONCE = 8
"""Masks that are looked at before the pixels are asked again."""


@dataclass(frozen=True)
class Skip:
    """bounded: leave out masks that cannot change a label, whatever the classifier says of them; tolerance:
    share of a photo's labels that they may change all the same, never more; duplicates: a mask takes the
    scores of a better one that it overlaps by this IoU, 0 for never; winners: only masks that are the
    strongest on this many pixels are looked at, 0 for all.
    """

    bounded: bool = False
    tolerance: float = 0.0
    duplicates: float = 0.0
    winners: int = 0

    @property
    def nothing(self) -> bool:
        """Whether every mask is looked at."""
        return not (self.bounded or self.duplicates or self.winners)


@dataclass(frozen=True)
class _Choice:
    """like: (N,) int64, the mask whose scores each one takes, itself for most; asked: (N,) bool, the masks
    that are worth a look.
    """

    like: Tensor
    asked: Tensor


def require_bounds(ensemble: Ensemble, classifier: RegionClassifier) -> BoundingEnsemble:
    """The ensemble, where masks can be left out for its sake.

    Raises:
        TwostageError: it cannot tell which labels are settled, or the classifier looks at the whole photo
            whatever the number of masks (it has no `per_mask` that is true).
    """
    if not getattr(classifier, "per_mask", False):
        raise TwostageError(
            f"TEST.SKIP.BOUNDED: {type(classifier).__name__} looks at the whole photo, so leaving masks out "
            "saves nothing; use CLASSIFIER.NAME crops, or set it false."
        )
    if not isinstance(ensemble, BoundingEnsemble):
        raise TwostageError(
            f"TEST.SKIP.BOUNDED: {type(ensemble).__name__} cannot tell which labels are settled; use "
            "ENSEMBLE.NAME geometric, or set it false."
        )
    return ensemble


def classify_few(
    skip: Skip,
    classifier: RegionClassifier,
    images: Sequence[Tensor],
    text: TextBank,
    known: Sequence[Evidence],
    ensemble: Ensemble,
    vocabulary: Vocabulary,
) -> list[RegionScores]:
    """As the classifier's `classify`, on the masks that `skip` leaves; RegionScores.looked says which.

    images: RGB uint8 (3, H, W); known: what all other parts say of them, with the proposals.
    """
    found = [one.proposals for one in known if one.proposals is not None]
    choices = [choose(skip, one) for one in found]
    if skip.bounded:
        judge = require_bounds(ensemble, classifier)
        return [
            _bounded(
                classifier,
                image,
                text,
                one,
                choice,
                skip.tolerance,
                judge.pixel_bounds(one, vocabulary),
                judge.pixel_bounds(_coarse(one), vocabulary),
            )
            for image, one, choice in zip(images, known, choices, strict=True)
        ]
    few = [one[choice.asked] for one, choice in zip(found, choices, strict=True)]
    scores = classifier.classify(images, few, text)
    return [_spread(part, choice) for part, choice in zip(scores, choices, strict=True)]


def choose(skip: Skip, found: Proposals) -> _Choice:
    """What `duplicates` and `winners` leave of the masks. Empty ones are always asked: that costs nothing."""
    count, device = len(found), found.masks.device
    like = torch.arange(count, device=device)
    asked = torch.ones(count, dtype=torch.bool, device=device)
    if not count:
        return _Choice(like, asked)
    if skip.winners:
        small = found.masks[:, ::STRIDE, ::STRIDE].float()
        strength, best = (small * found.scores.to(device)[:, None, None]).max(dim=0)
        wins = torch.bincount(best[strength > 0], minlength=count)
        empty = ~binarise(found.masks, 0.5).flatten(1).any(dim=1)
        asked = (wins * STRIDE**2 >= skip.winners) | empty
    if skip.duplicates:
        like = _copies(found, asked, skip.duplicates)
    return _Choice(like, asked & (like == torch.arange(count, device=device)))


def _copies(found: Proposals, asked: Tensor, iou: float) -> Tensor:
    """(N,) int64: for each asked mask the best one that it overlaps so far, or itself."""
    overlaps = (pairwise_iou(binarise(found.masks, 0.5), stride=STRIDE) >= iou).cpu()
    like = list(range(len(found)))
    originals: list[int] = []
    for row in found.scores.argsort(descending=True, stable=True).tolist():
        if not asked[row]:
            continue
        same = next((other for other in originals if overlaps[row, other]), None)
        if same is None:
            originals.append(row)
        else:
            like[row] = same
    return torch.tensor(like, device=found.masks.device)


def _spread(few: RegionScores, choice: _Choice) -> RegionScores:
    """Scores of the asked masks -> scores of all."""
    full = _even(len(choice.asked), few)
    rows = choice.asked.nonzero()[:, 0]
    return _shared(_filled(full, rows, few), choice.like, choice.asked)


def _even(count: int, like: RegionScores) -> RegionScores:
    """No opinion of `count` masks, in the form of another's scores."""
    none = None if like.no_object is None else like.no_object.new_full((count,), -torch.inf)
    valid = torch.ones(count, dtype=torch.bool, device=like.valid.device)
    return RegionScores(like.logits.new_zeros(count, like.logits.shape[1]), valid, none, like.image)


def _filled(full: RegionScores, rows: Tensor, few: RegionScores) -> RegionScores:
    """The same with these rows replaced."""
    none = full.no_object
    if none is not None and few.no_object is not None:
        none = none.index_copy(0, rows, few.no_object)
    logits = full.logits.index_copy(0, rows, few.logits)
    return replace(full, logits=logits, valid=full.valid.index_copy(0, rows, few.valid), no_object=none)


def _shared(scores: RegionScores, like: Tensor, looked: Tensor) -> RegionScores:
    return replace(scores[like], looked=looked)


def _coarse(known: Evidence) -> Evidence:
    """A small picture of the same masks: which of them matter can be guessed there."""
    found = known.proposals
    assert found is not None
    masks = found.masks[:, ::COARSE, ::COARSE]
    size_hw = (masks.shape[1], masks.shape[2])
    return replace(known, proposals=replace(found, masks=masks), size_hw=size_hw)


def _bounded(
    classifier: RegionClassifier,
    image: Tensor,
    text: TextBank,
    known: Evidence,
    choice: _Choice,
    tolerance: float,
    exact: LabelBounds,
    guess: LabelBounds,
) -> RegionScores:
    """Looks at the masks that matter most, some at a time, until no pixel's label can change any more."""
    found = known.proposals
    assert found is not None
    [first] = classifier.classify([image], [found[:0]], text)
    if not len(found):
        return first
    strongest = F.max_pool2d(found.masks.float()[None], COARSE, COARSE, ceil_mode=True)[0].flatten(1)
    scores = _even(len(found), first)
    pending = choice.asked.clone()
    told, asking = guess, None
    while bool(pending.any()):
        looked = ~pending[choice.like]
        told.tell(_shared(scores, choice.like, looked), looked)
        asking = told.unsettled() if asking is None else told.still_unsettled(asking)
        size_hw = known.size_hw if told is exact else (-(-side // COARSE) for side in found.size_hw)
        few_enough = len(asking) <= tolerance * math.prod(size_hw)
        if few_enough and told is exact:
            break
        if few_enough:
            told, asking = exact, None
            continue
        cells = asking if told is guess else _cells(asking, known.size_hw, found.size_hw)
        rows = _most(pending, told.spare * strongest[:, cells].sum(dim=1))
        [few] = classifier.classify([image], [found[rows]], text)
        scores = _filled(scores, rows, few)
        pending[rows] = False
    return _shared(scores, choice.like, choice.asked & ~pending)


def _cells(pixels: Tensor, size_hw: tuple[int, int], masks_hw: tuple[int, int]) -> Tensor:
    """The cells of the small picture that these pixels of the label map lie in."""
    height, width = (-(-side // COARSE) for side in masks_hw)
    rows = pixels // size_hw[1] * height // size_hw[0]
    columns = pixels % size_hw[1] * width // size_hw[1]
    cells: Tensor = torch.unique(rows * width + columns)
    return cells


def _most(pending: Tensor, influence: Tensor) -> Tensor:
    """(M,) int64, the pending masks of the largest influence."""
    ranked = torch.where(pending, influence, -1.0).argsort(descending=True, stable=True)
    return ranked[: min(AT_ONCE, int(pending.sum()))]
