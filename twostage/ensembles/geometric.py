"""The weighted geometric mean of everything that has an opinion on a region, painted through the masks.

Section 3.3 of "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language
Model" (Xu et al., ECCV 2022): stage one is trusted on the classes it was trained on, CLIP on the others. A
dense CLIP map joins in two places, as a further opinion on every region and on every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twostage.ensembles import _presence
from twostage.ensembles._paint import DenseMap, Painter, PixelRules, ScoredMasks
from twostage.errors import TwostageError
from twostage.ops.fusion import class_weights, geometric_mean, pool_logits
from twostage.types import DenseScores, Evidence, RegionScores, Segmentation
from twostage.vocabulary import Vocabulary, nearest

PARTS = ("stage_one", "regions", "dense")
CHOICES = {
    "empty": ("paper", "drop"),
    "uncovered": ("argmax", "dense", "void"),
    "prune": ("", *_presence.SOURCES),
}


class GeometricEnsemble:
    """Merges stage one, CLIP on regions and dense CLIP into labels.

    Raises:
        TwostageError: an option has no such value, or a part that was asked for is absent.
    """

    weighs = PARTS
    """The parts of the evidence that it understands."""

    @dataclass(frozen=True)
    class Config:
        """use: the parts to weigh, "stage_one", "regions", "dense"; "all" takes whatever is there; weight:
        exponent of CLIP's region scores on unseen classes (the paper's w); 0 or less leaves CLIP alone;
        seen_weight: the same on seen classes, None for 1 - weight; empty: "paper" gives an empty mask the
        CLIP score 1 for every class, and class 0 to a picture without evidence; "drop" leaves empty masks
        out, and such a picture is void; dense_weight, dense_seen_weight: share in [0, 1] of the dense map,
        pooled under each mask, in CLIP's region scores (None: as for unseen classes); dense_pixel_weight: its
        share in every pixel's class probabilities afterwards; dense_temperature: divides the dense logits
        before their softmax (above 1 softens); presence: share in [0, 1] of CLIP's logits of the image as a
        whole in its logits of every region and every place of the dense map (CASS's gamma, there .1 to .4);
        prune: drops classes that are not in the picture, by their probability in the "image" as a whole, or
        their largest in the "dense" map or the "regions", empty for none; prune_above: keeps those above it;
        prune_top: and of these the likeliest so many, 0 for all; prune_sure: all are kept where none is above
        this, or none passes; uncovered: what a pixel gets that no mask claims, "argmax" of
        the faint rest (paper), "dense" or "void"; coverage: a mask claims the pixels where it is above this;
        scores: return the class map at output size too (K x H x W float32); confidence: return the share of
        each pixel's label in that map (H x W float32).
        """

        use: tuple[str, ...] = ("all",)
        weight: float = 0.8
        seen_weight: float | None = None
        empty: Literal["paper", "drop"] = "paper"
        dense_weight: float = 0.5
        dense_seen_weight: float | None = None
        dense_pixel_weight: float = 0.0
        dense_temperature: float = 1.0
        presence: float = 0.0
        prune: Literal["", "image", "dense", "regions"] = ""
        prune_above: float = 0.0
        prune_top: int = 0
        prune_sure: float = 0.0
        uncovered: Literal["argmax", "dense", "void"] = "argmax"
        coverage: float = 0.5
        scores: bool = False
        confidence: bool = False

        def __post_init__(self) -> None:
            for part in self.use:
                if part not in (*PARTS, "all"):
                    raise TwostageError(
                        f"GeometricEnsemble: unknown part {part!r} in use.{nearest(part, PARTS)}"
                    )
            for option, allowed in CHOICES.items():
                value = getattr(self, option)
                if value not in allowed:
                    raise TwostageError(
                        f"GeometricEnsemble: unknown {option} {value!r}.{nearest(str(value), allowed)}"
                    )
            for option in ("seen_weight", "dense_weight", "dense_seen_weight", "dense_pixel_weight"):
                value = getattr(self, option)
                if value is not None and not 0 <= value <= 1:
                    raise TwostageError(f"GeometricEnsemble: {option} must lie in [0, 1], got {value}.")
            if self.weight > 1:
                raise TwostageError(f"GeometricEnsemble: weight must be at most 1, got {self.weight}.")
            if self.dense_temperature <= 0:
                raise TwostageError(
                    f"GeometricEnsemble: dense_temperature must be above 0, got {self.dense_temperature}."
                )
            _presence.check_options(self)

    def __init__(self, config: Config) -> None:
        self.config = config

    @torch.no_grad()
    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        """Labels of evidence.size_hw, int32, VOID where nothing speaks (only with empty="drop" or
        uncovered="void").
        """
        parts = self.parts(evidence)
        _check(evidence, parts, len(vocabulary))
        kept = self.kept(evidence)
        if kept is None:
            return self._label(evidence, parts, vocabulary)
        few = self._label(evidence.of_classes(kept), parts, vocabulary.subset(kept.tolist()))
        return _presence.in_full(few, kept, len(vocabulary))

    def kept(self, evidence: Evidence) -> Tensor | None:
        """(M,) int64, the classes that pruning leaves, in order; None for all of them."""
        config = self.config
        if not config.prune:
            return None
        scores = _presence.class_presence(evidence, config.prune, config.dense_temperature)
        return _presence.kept_classes(scores, config.prune_above, config.prune_top, config.prune_sure)

    def _label(self, evidence: Evidence, parts: tuple[str, ...], vocabulary: Vocabulary) -> Segmentation:
        config = self.config
        regions = self._regions(evidence, parts, vocabulary)
        dense = None
        if "dense" in parts and evidence.dense is not None:
            dense = DenseMap(self._dense_logits(evidence, evidence.dense))
        if config.uncovered == "dense" and dense is None:
            raise TwostageError(
                'GeometricEnsemble: uncovered = "dense" needs a dense map, but there is none; '
                'configure a dense head, or choose "argmax" or "void".'
            )
        rules = PixelRules(
            config.dense_pixel_weight, config.uncovered, config.coverage, config.empty == "drop"
        )
        painter = Painter(rules, regions, dense, evidence.size_hw)
        labels, scores, confidence = painter.label(len(vocabulary), config.scores, config.confidence)
        info = {"parts": parts, "proposals": len(evidence.proposals or ())}
        return Segmentation(labels, scores, confidence, info)

    def parts(self, evidence: Evidence) -> tuple[str, ...]:
        """The parts that will be weighed: those asked for, or all that are present."""
        present = tuple(part for part in PARTS if getattr(evidence, part) is not None)
        wanted = PARTS if "all" in self.config.use else self.config.use
        missing = [part for part in wanted if part not in present]
        if (missing and "all" not in self.config.use) or not present:
            raise TwostageError(
                f"GeometricEnsemble: use = {list(self.config.use)}, the evidence has {list(present)}; "
                "configure the missing part or take it out of use."
            )
        return tuple(part for part in present if part in wanted)

    def region_scores(
        self, evidence: Evidence, parts: tuple[str, ...], vocabulary: Vocabulary
    ) -> tuple[Tensor, Tensor] | None:
        """(N, K) scores to be mixed with the masks, not renormalised, and (N,) bool, which masks take part;
        None where no part speaks of regions. Rows that take no part are zero.
        """
        clip = self._clip_probs(evidence, parts, vocabulary)
        trained = (
            evidence.stage_one.probs() if "stage_one" in parts and evidence.stage_one is not None else None
        )
        if clip is None:
            return None if trained is None else (trained, torch.ones_like(trained[:, 0], dtype=torch.bool))
        probs, valid = clip
        if trained is None or self.config.weight <= 0:
            return probs * valid[:, None], valid
        seen_weight = 1 - self.config.weight if self.config.seen_weight is None else self.config.seen_weight
        weights = class_weights(
            self.config.weight, seen_weight, vocabulary.seen, len(vocabulary), probs.device
        )
        merged = geometric_mean(trained.to(probs.device), torch.where(valid[:, None], probs, 1.0), weights)
        if self.config.empty == "drop":
            return merged * valid[:, None], valid
        return merged, torch.ones_like(valid)

    def _clip_probs(
        self, evidence: Evidence, parts: tuple[str, ...], vocabulary: Vocabulary
    ) -> tuple[Tensor, Tensor] | None:
        """CLIP's opinion of the regions, crops and pooled dense map together: (N, K) probabilities and (N,)
        valid.
        """
        crops = evidence.regions if "regions" in parts else None
        if crops is not None:
            crops = _presence.region_presence(crops, evidence, self.config.presence)
        pooled = self._pooled(evidence) if "dense" in parts and self.config.dense_weight > 0 else None
        if crops is None or pooled is None:
            found = pooled if crops is None else crops
            return None if found is None else (found.probs(), found.valid)
        share = self.config.dense_weight
        seen_share = share if self.config.dense_seen_weight is None else self.config.dense_seen_weight
        weights = class_weights(share, seen_share, vocabulary.seen, len(vocabulary), crops.logits.device)
        probs = geometric_mean(crops.probs(), pooled.probs().to(crops.logits.device), weights)
        return probs / probs.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny), crops.valid

    def _pooled(self, evidence: Evidence) -> RegionScores | None:
        if evidence.dense is None or evidence.proposals is None:
            return None
        masks = evidence.proposals.masks
        logits = self._dense_logits(evidence, evidence.dense).to(masks.device)
        return RegionScores(*pool_logits(logits, masks))

    def _dense_logits(self, evidence: Evidence, dense: DenseScores) -> Tensor:
        """(K, h, w) with the image's own say in them, divided by the temperature."""
        told = _presence.dense_presence(dense, evidence, self.config.presence)
        return told / self.config.dense_temperature

    def _regions(
        self, evidence: Evidence, parts: tuple[str, ...], vocabulary: Vocabulary
    ) -> ScoredMasks | None:
        if parts == ("dense",):  # a dense map alone names pixels, whether or not there are masks
            return None
        scored = self.region_scores(evidence, parts, vocabulary)
        if scored is None or evidence.proposals is None:
            return None
        masks = evidence.proposals.masks
        return ScoredMasks(scored[0].to(masks.device), masks, scored[1].to(masks.device))

    @classmethod
    def tiny(cls) -> GeometricEnsemble:
        """The ensemble as it is; it costs nothing."""
        return cls(cls.Config())


def _check(evidence: Evidence, parts: tuple[str, ...], num_classes: int) -> None:
    count = None if evidence.proposals is None else len(evidence.proposals)
    for part in ("stage_one", "regions"):
        scores: RegionScores | None = getattr(evidence, part)
        if part not in parts or scores is None:
            continue
        if count is None:
            raise TwostageError(
                f"GeometricEnsemble: {part} scores came without proposals; put the masks into Evidence."
            )
        if scores.logits.shape != (count, num_classes):
            raise TwostageError(
                f"GeometricEnsemble: {part} should be ({count}, {num_classes}), masks by classes, "
                f"got {tuple(scores.logits.shape)}."
            )
    if "dense" in parts and evidence.dense is not None and len(evidence.dense.logits) != num_classes:
        raise TwostageError(
            f"GeometricEnsemble: the dense map should have {num_classes} classes as the vocabulary, "
            f"got {len(evidence.dense.logits)}."
        )
