"""What the image as a whole says of the classes: a prior on every score, and which classes to leave out.

The prior is CASS's (Kim et al., 2025, object presence prior): S <- (1 - gamma) S + gamma cos(class token,
text). As a mixture of logits it is the geometric mean of the probabilities, not renormalised.

Shapes: K classes, N regions, h x w places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.types import DenseScores, Evidence, RegionScores, Segmentation

SOURCES = ("image", "dense", "regions")
"""Where a class may show itself: in the image as a whole, in some place of the dense map, in some region."""
PLACES_BYTES = 16 * 2**20


def with_presence(logits: Tensor, image: Tensor, gamma: float) -> Tensor:
    """(1 - gamma) logits + gamma image; both broadcast, classes against classes."""
    return torch.lerp(logits, image.to(logits.device, logits.dtype).expand_as(logits), gamma)


def image_logits(evidence: Evidence, first: RegionScores | DenseScores | None, reason: str) -> Tensor:
    """(K,) what is said of the whole image: by `first` itself, or else by regions or the dense map.

    Raises:
        TwostageError: nobody looked at the image as a whole; `reason` is the option that asks for it.
    """
    for part in (first, evidence.regions, evidence.dense):
        if part is not None and part.image is not None:
            return part.image
    raise TwostageError(
        f"GeometricEnsemble: {reason} needs CLIP's scores of the image as a whole, and the evidence has "
        "none; set DENSE.OPTIONS.IMAGE true (readout), or CLASSIFIER.NAME pooled."
    )


def region_presence(regions: RegionScores, evidence: Evidence, gamma: float) -> RegionScores:
    """Region scores with the prior in them; what they say of "no object" stays."""
    if gamma == 0:
        return regions
    image = image_logits(evidence, regions, "presence")
    return RegionScores(with_presence(regions.logits, image, gamma), regions.valid, regions.no_object)


def dense_presence(dense: DenseScores, evidence: Evidence, gamma: float) -> Tensor:
    """(K, h, w) dense logits with the prior in them."""
    if gamma == 0:
        return dense.logits
    image = image_logits(evidence, dense, "presence")
    return with_presence(dense.logits, image[:, None, None], gamma)


def class_presence(evidence: Evidence, source: str, temperature: float) -> Tensor:
    """(K,) float32 in [0, 1]: the probability of each class in the whole image ("image"), the largest in any
    place of the dense map ("dense", as MaskCLIP's prompt denoising and TagCLIP's tags have it), or in any
    valid region ("regions"). temperature: divides the dense logits.

    Raises:
        TwostageError: the source is not in the evidence.
    """
    if source == "image":
        return image_logits(evidence, None, 'prune "image"').softmax(dim=0)
    part = evidence.dense if source == "dense" else evidence.regions
    if part is None:
        name = "DENSE.NAME" if source == "dense" else "CLASSIFIER.NAME"
        raise TwostageError(
            f"GeometricEnsemble: prune {source!r} needs what the evidence does not have: set {name}, or "
            f"choose another of {', '.join(SOURCES)}."
        )
    if isinstance(part, DenseScores):
        return _dense_presence(part.logits, temperature)
    probs = part.probs()[part.valid]
    return probs.amax(dim=0) if len(probs) else part.logits.new_zeros(part.logits.shape[1])


def _dense_presence(logits: Tensor, temperature: float) -> Tensor:
    """The largest probability of each class over all places, some places at a time."""
    places = logits.flatten(1)
    many = max(1, PLACES_BYTES // (4 * len(logits)))
    best = [(part / temperature).softmax(dim=0).amax(dim=1) for part in places.split(many, dim=1)]
    return torch.stack(best).amax(dim=0)


def kept_classes(scores: Tensor, above: float, top: int, sure: float) -> Tensor | None:
    """(M,) int64 in order, the classes to keep, or None for all of them.

    scores: (K,) presence; above: keep those above it; top: of these at most so many, 0 for any number; sure:
    where not even the best score is above this, all are kept, and so they are where none passes.
    """
    if float(scores.max()) <= sure:
        return None
    kept = scores > above
    if top and top < len(scores):
        best = torch.zeros_like(kept)
        best[scores.topk(top).indices] = True
        kept = kept & best
    if bool(kept.all()) or not bool(kept.any()):
        return None
    return kept.nonzero()[:, 0]


def in_full(made: Segmentation, kept: Tensor, num_classes: int) -> Segmentation:
    """A segmentation among the kept classes -> the same with the vocabulary's numbers."""
    labels = made.labels.long()
    named = torch.where(labels < 0, labels, kept.to(labels.device)[labels.clamp(min=0)])
    scores = None
    if made.scores is not None:
        scores = made.scores.new_zeros(num_classes, *made.scores.shape[1:])
        scores[kept.to(scores.device)] = made.scores
    info = {**made.info, "classes": len(kept)}
    return Segmentation(named.to(made.labels.dtype), scores, made.confidence, info)


def check_options(config: Any) -> None:
    """Of GeometricEnsemble.Config: presence and prune.

    Raises:
        TwostageError: a number out of range, or a pruning that would drop nothing.
    """
    for option in ("presence", "prune_above", "prune_sure"):
        value = getattr(config, option)
        if not 0 <= value <= 1:
            raise TwostageError(f"GeometricEnsemble: {option} must lie in [0, 1], got {value}.")
    if config.prune_top < 0:
        raise TwostageError(f"GeometricEnsemble: prune_top must not be negative, got {config.prune_top}.")
    if config.prune and not (config.prune_above or config.prune_top):
        raise TwostageError(
            f"GeometricEnsemble: prune {config.prune!r} with prune_above 0 and prune_top 0 would drop "
            "nothing: set one of them, or leave prune empty."
        )
