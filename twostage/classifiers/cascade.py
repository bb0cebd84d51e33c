"""A cheap look at all masks first, and crops only of those that it is not sure of.

The cheap look is another classifier (`masked_attention`, `pooled` or `query`): one pass of CLIP, or none. A
mask whose two likeliest classes are close is then cut out and shown to CLIP alone, as `crops` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from twostage import registry
from twostage.classifiers._looks import check_pairs
from twostage.errors import TwostageError
from twostage.interfaces import RegionClassifier
from twostage.types import Proposals, RegionScores, TextBank
from twostage.vocabulary import nearest

FIRST = ("masked_attention", "pooled", "query")


class CascadeClassifier:
    """Names masks by a cheap classifier, and those that stay in doubt by crops.

    Raises:
        TwostageError: an option has no such value, here or in one of the two classifiers.
        DenseTowerError, ComponentError: what the cheap classifier says of a tower or of masks that it cannot
            read.
    """

    @dataclass(frozen=True)
    class Config:
        """first: the classifier that looks at all masks; margin: a mask is cut out where the probabilities of
        its two likeliest classes differ by less than this, 0 for none and 1 for (nearly) all; top: of these
        at most so many in an image, the closest first, 0 for no limit; temperature: divides the cheap logits
        before anything else, so that both classifiers are as sure (above 1 softens). The defaults leave 99 %
        of the pixels of the embedded world with the label that crops give; find others for your own data with
        `twostage bench --pareto`.

        crops, pooled, masked_attention, query: the options of these classifiers, by their own names.
        """

        first: Literal["masked_attention", "pooled", "query"] = "masked_attention"
        margin: float = 0.9
        top: int = 0
        temperature: float = 8.0
        crops: Mapping[str, Any] = field(default_factory=dict)
        pooled: Mapping[str, Any] = field(default_factory=dict)
        masked_attention: Mapping[str, Any] = field(default_factory=dict)
        query: Mapping[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            if self.first not in FIRST:
                raise TwostageError(
                    f"CascadeClassifier: unknown first {self.first!r}.{nearest(str(self.first), FIRST)}"
                )
            if not 0 <= self.margin <= 1:
                raise TwostageError(f"CascadeClassifier: margin must lie in [0, 1], got {self.margin}.")
            if self.top < 0:
                raise TwostageError(f"CascadeClassifier: top must not be negative, got {self.top}.")
            if self.temperature <= 0:
                raise TwostageError(
                    f"CascadeClassifier: temperature must be above 0, got {self.temperature}."
                )
            for name in ("crops", *FIRST):
                self.options_of(name)

        def options_of(self, name: str) -> Any:
            """The Config of one of the classifiers, from its group of options."""
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TwostageError(f"CascadeClassifier: {name}: expected options by name, got {given!r}.")
            return registry.make_config(registry.find("classifiers", name), given)

    def __init__(self, config: Config, clip: Any, max_memory: int = 0) -> None:
        """max_memory: for the two classifiers, where they ask for it."""
        self.config = config
        self.clip = clip
        parts = {"clip": clip, "max_memory": max_memory}
        self.first: RegionClassifier = _made(config, config.first, parts)
        self.crops: RegionClassifier = _made(config, "crops", parts)
        self.crops_made: tuple[int, ...] = ()
        """How many masks of each image of the last call were cut out."""

    @classmethod
    def tiny(cls) -> CascadeClassifier:
        """The smallest shipped ViT with random weights, one pass and crops of 32 pixels."""
        from twostage.clip.model import ClipModel

        config = cls.Config(margin=0.5, temperature=1.0, crops={"image_size": 32})
        return cls(config, ClipModel.load("twostage-mini-vit", "random", seed=0))

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """images: RGB uint8 (3, H, W); proposals: masks of the same sizes -> class logits of each mask: those
        of crops for the masks that were cut out, else the cheap ones over the temperature.

        Rows of empty masks are kept: valid is False there and the logits are 0. `crops_made` says afterwards
        how many masks of each image were cut out.
        """
        check_pairs("CascadeClassifier", images, proposals)
        found = [self._tempered(scores) for scores in self.first.classify(images, proposals, text)]
        doubtful = [self._doubtful(scores) for scores in found]
        self.crops_made = tuple(len(rows) for rows in doubtful)
        if not any(self.crops_made):
            return found
        asked = [own[rows] for own, rows in zip(proposals, doubtful, strict=True)]
        closer = self.crops.classify(images, asked, text)
        return [_replaced(*three) for three in zip(found, doubtful, closer, strict=True)]

    def _tempered(self, scores: RegionScores) -> RegionScores:
        image = None if scores.image is None else scores.image / self.config.temperature
        return replace(scores, logits=scores.logits / self.config.temperature, image=image)

    def _doubtful(self, scores: RegionScores) -> Tensor:
        """(M,) int64 in order, the masks to be cut out."""
        margin = margins(scores)
        rows = (scores.valid & (margin < self.config.margin)).nonzero()[:, 0]
        if self.config.top and len(rows) > self.config.top:
            closest = margin[rows].argsort(stable=True)[: self.config.top]
            rows = rows[closest].sort().values
        return rows


def _made(config: CascadeClassifier.Config, name: str, parts: Mapping[str, Any]) -> Any:
    """One of the two classifiers, with the parts that its constructor asks for."""
    component: Any = registry.find("classifiers", name)
    asked = inspect.signature(component).parameters
    return component(config.options_of(name), **{part: parts[part] for part in parts if part in asked})


def margins(scores: RegionScores) -> Tensor:
    """(N,) in [0, 1], by how much the likeliest class of each mask leads; 1 where there is one class."""
    probs = scores.probs()
    if probs.shape[1] < 2:
        return torch.ones_like(probs[:, 0])
    best = probs.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def _replaced(cheap: RegionScores, rows: Tensor, closer: RegionScores) -> RegionScores:
    """The cheap scores with those of crops in these rows; a mask that crops find empty keeps its own."""
    rows, logits = rows[closer.valid], cheap.logits.clone()
    logits[rows] = closer.logits[closer.valid]
    return replace(cheap, logits=logits)
