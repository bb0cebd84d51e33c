"""The paper's per-pixel baseline: a trained network and CLIP weighed against each other in every pixel.

The FCN of the ablation in "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained
Vision-language Model" (Xu et al., ECCV 2022): no masks take part, and seen and unseen classes have the same
two exponents as the regions have in the two-stage system.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twostage.ensembles._enlarge import Enlarged
from twostage.errors import TwostageError
from twostage.ops.fusion import class_weights, strips
from twostage.types import DenseScores, Evidence, Segmentation
from twostage.vocabulary import Vocabulary, nearest

PARTS = ("pixels", "dense")


class PerPixelEnsemble:
    """Labels from the per-pixel network, the dense CLIP map, or both.

    Raises:
        TwostageError: an option has no such value, or a part that was asked for is absent.
    """

    weighs = PARTS
    """The parts of the evidence that it understands."""

    @dataclass(frozen=True)
    class Config:
        """use: the parts to weigh, "pixels" and "dense"; "all" takes whatever is there; weight: exponent of
        CLIP's probabilities on unseen classes (the paper's w), below 0 leaves CLIP alone; seen_weight: the
        same on seen classes, None for 1 - weight; pixel_temperature, dense_temperature: divide the logits
        before their softmax (above 1 softens); scores: return the class map at output size too (K x H x W
        float32); confidence: return the share of each pixel's label in that map (H x W float32).
        """

        use: tuple[str, ...] = ("all",)
        weight: float = 0.7
        seen_weight: float | None = None
        pixel_temperature: float = 1.0
        dense_temperature: float = 1.0
        scores: bool = False
        confidence: bool = False

        def __post_init__(self) -> None:
            for part in self.use:
                if part not in (*PARTS, "all"):
                    raise TwostageError(
                        f"PerPixelEnsemble: unknown part {part!r} in use.{nearest(part, PARTS)}"
                    )
            if self.weight > 1:
                raise TwostageError(f"PerPixelEnsemble: weight must be at most 1, got {self.weight}.")
            if self.seen_weight is not None and not 0 <= self.seen_weight <= 1:
                raise TwostageError(
                    f"PerPixelEnsemble: seen_weight must lie in [0, 1], got {self.seen_weight}."
                )
            for option in ("pixel_temperature", "dense_temperature"):
                if getattr(self, option) <= 0:
                    raise TwostageError(
                        f"PerPixelEnsemble: {option} must be above 0, got {getattr(self, option)}."
                    )

    def __init__(self, config: Config) -> None:
        self.config = config

    @torch.no_grad()
    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        """Labels of evidence.size_hw, int32; every pixel gets one."""
        config, size, count = self.config, evidence.size_hw, len(vocabulary)
        parts = self.parts(evidence)
        maps = [Enlarged(self._scores(evidence, part, count), size) for part in parts]
        device = maps[0].device
        weights = self._weights(vocabulary, device) if len(maps) == 2 else None
        labels = torch.empty(size, dtype=torch.int32, device=device)
        kept = torch.empty(count, *size, device=device) if config.scores else None
        sure = torch.empty(size, device=device) if config.confidence else None
        for first, last in strips(max(enlarged.num_maps for enlarged in maps), size):
            logs = [enlarged.rows(first, last).log_softmax(dim=0).to(device) for enlarged in maps]
            mixed = logs[0] if weights is None else torch.lerp(logs[0], logs[1], weights)
            value, best = mixed.max(dim=0)  # on CPUs several times faster than argmax over the first axis
            labels[first:last] = best.int()
            if sure is not None:
                sure[first:last] = (value - mixed.logsumexp(dim=0)).exp()
            if kept is not None:
                kept[:, first:last] = mixed.exp()
        return Segmentation(labels, kept, sure, {"parts": parts})

    def parts(self, evidence: Evidence) -> tuple[str, ...]:
        """The parts that will be weighed: those asked for, or all that are present; "pixels" first."""
        present = tuple(part for part in PARTS if getattr(evidence, part) is not None)
        asked = "all" not in self.config.use
        if not present or (asked and not set(self.config.use) <= set(present)):
            raise TwostageError(
                f"PerPixelEnsemble: use = {list(self.config.use)}, the evidence has {list(present)}; "
                "configure the missing part (PIXELS.NAME, DENSE.NAME) or take it out of use."
            )
        wanted = tuple(part for part in present if not asked or part in self.config.use)
        return ("dense",) if wanted == PARTS and self.config.weight < 0 else wanted

    def _scores(self, evidence: Evidence, part: str, count: int) -> DenseScores:
        scores: DenseScores = evidence.pixels if part == "pixels" else evidence.dense  # type: ignore[assignment]
        if len(scores.logits) != count:
            raise TwostageError(
                f"PerPixelEnsemble: the {part} map should have {count} classes as the vocabulary, "
                f"got {len(scores.logits)}."
            )
        config = self.config
        temperature = config.pixel_temperature if part == "pixels" else config.dense_temperature
        return scores if temperature == 1 else replace(scores, logits=scores.logits / temperature)

    def _weights(self, vocabulary: Vocabulary, device: torch.device) -> Tensor:
        """(K, 1, 1): CLIP's share in the weighted geometric mean, which is a plain mean of logarithms."""
        weight, seen_weight = self.config.weight, self.config.seen_weight
        seen_weight = 1 - weight if seen_weight is None else seen_weight
        return class_weights(weight, seen_weight, vocabulary.seen, len(vocabulary), device)[:, None, None]

    @classmethod
    def tiny(cls) -> PerPixelEnsemble:
        """The ensemble as it is; it costs nothing."""
        return cls(cls.Config())
