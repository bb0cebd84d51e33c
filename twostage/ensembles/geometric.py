"""The weighted geometric mean of everything that has an opinion on a region, painted through the masks.

Section 3.3 of "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language
Model" (Xu et al., ECCV 2022): stage one is trusted on the classes it was trained on, CLIP on the others. A
dense CLIP map joins in two places, as a further opinion on every region and on every pixel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from twostage.ensembles import _presence
from twostage.ensembles._bounds import PixelBounds, ScoreBounds
from twostage.ensembles._geometric_options import PARTS, GeometricConfig
from twostage.ensembles._paint import DenseMap, Painter, PixelRules, ScoredMasks
from twostage.errors import TwostageError
from twostage.ops.fusion import class_weights, geometric_mean, pool_logits
from twostage.types import DenseScores, Evidence, RegionScores, Segmentation
from twostage.vocabulary import Vocabulary


class GeometricEnsemble:
    """Merges stage one, CLIP on regions and dense CLIP into labels.

    Raises:
        TwostageError: an option has no such value, or a part that was asked for is absent.
    """

    weighs = PARTS
    """The parts of the evidence that it understands."""

    Config = GeometricConfig

    def __init__(self, config: GeometricConfig) -> None:
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
        dense = self._dense_map(evidence, parts)
        if config.uncovered == "dense" and dense is None:
            raise TwostageError(
                'GeometricEnsemble: uncovered = "dense" needs a dense map, but there is none; '
                'configure a dense head, or choose "argmax" or "void".'
            )
        painter = Painter(self._rules, regions, dense, evidence.size_hw)
        labels, scores, confidence = painter.label(len(vocabulary), config.scores, config.confidence)
        info = {"parts": parts, "proposals": len(evidence.proposals or ())}
        if evidence.regions is not None and evidence.regions.looked is not None:
            info["looked"] = int(evidence.regions.looked.sum())
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
        trained = _trained(evidence, parts)
        if clip is None:
            return None if trained is None else (trained, torch.ones_like(trained[:, 0], dtype=torch.bool))
        return self._merged(trained, clip[0], clip[1], vocabulary)

    def _merged(
        self, trained: Tensor | None, probs: Tensor, valid: Tensor, vocabulary: Vocabulary
    ) -> tuple[Tensor, Tensor]:
        """trained, probs: (N, K), of stage one and of CLIP; monotone in both."""
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

    def pixel_bounds(self, evidence: Evidence, vocabulary: Vocabulary) -> PixelBounds:
        """What can be said of every pixel's label before the classifier has looked at all masks.

        evidence: everything but `regions`.

        Raises:
            TwostageError: the labels depend on all masks together, or not on the classifier at all.
        """
        if self.config.prune == "regions":
            raise TwostageError(
                'GeometricEnsemble: prune "regions" asks every mask which classes there are, so none can be '
                'left out. Set ENSEMBLE.OPTIONS.PRUNE "dense" or "image", or TEST.SKIP.BOUNDED false.'
            )
        found = evidence.proposals
        if found is None or not {"all", "regions"} & set(self.config.use):
            raise TwostageError("GeometricEnsemble: no label depends on CLIP's look at the masks.")
        kept = self.kept(evidence)
        if kept is not None:
            evidence, vocabulary = evidence.of_classes(kept), vocabulary.subset(kept.tolist())
        blank = RegionScores(
            found.masks.new_zeros(len(found), len(vocabulary), dtype=torch.float32),
            torch.ones(len(found), dtype=torch.bool, device=found.masks.device),
        )
        parts = self.parts(replace(evidence, regions=blank))
        pooled = self._pooled(evidence) if "dense" in parts and self.config.dense_weight > 0 else None
        trained = _trained(evidence, parts)

        def score(regions: RegionScores, looked: Tensor) -> ScoreBounds:
            said = regions if kept is None else regions.of_classes(kept)
            clip = self._clip_probs(replace(evidence, regions=said), parts, vocabulary, pooled)
            assert clip is not None  # it looked at the regions
            probs, valid = clip
            seen = looked.to(probs.device)[:, None]
            low, _ = self._merged(trained, torch.where(seen, probs, 0.0), valid, vocabulary)
            high, _ = self._merged(trained, torch.where(seen, probs, 1.0), valid, vocabulary)
            return ScoreBounds(low.to(found.masks.device), (high - low).to(found.masks.device))

        regions = ScoredMasks(blank.logits, found.masks, blank.valid)
        return PixelBounds(self._rules, regions, score, self._dense_map(evidence, parts), evidence.size_hw)

    def _clip_probs(
        self,
        evidence: Evidence,
        parts: tuple[str, ...],
        vocabulary: Vocabulary,
        pooled: RegionScores | None = None,
    ) -> tuple[Tensor, Tensor] | None:
        """CLIP's opinion of the regions, crops and pooled dense map together: (N, K) probabilities and (N,)
        valid. pooled: the dense map under the masks, where that is known.
        """
        crops = evidence.regions if "regions" in parts else None
        if crops is not None:
            crops = _presence.region_presence(crops, evidence, self.config.presence)
        if pooled is None and "dense" in parts and self.config.dense_weight > 0:
            pooled = self._pooled(evidence)
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

    def _dense_map(self, evidence: Evidence, parts: tuple[str, ...]) -> DenseMap | None:
        if "dense" not in parts or evidence.dense is None:
            return None
        return DenseMap(self._dense_logits(evidence, evidence.dense))

    @property
    def _rules(self) -> PixelRules:
        config = self.config
        return PixelRules(
            config.dense_pixel_weight, config.uncovered, config.coverage, config.empty == "drop"
        )

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


def _trained(evidence: Evidence, parts: tuple[str, ...]) -> Tensor | None:
    """(N, K) stage one's probabilities, None where they take no part."""
    if "stage_one" not in parts or evidence.stage_one is None:
        return None
    return evidence.stage_one.probs()


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
