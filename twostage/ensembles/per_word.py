"""The protocol of the public dense evaluations: every word competes, a class has the probability of its best.

As SCLIP (Wang, Mei, Yuille, ECCV 2024) and its descendants evaluate: the cosines are brought to the photo's
own size first, one softmax runs over all words of all classes, and a class takes the largest probability of
its words (so that the classes of a pixel no longer sum to one). Where a class is everything else, small
classes and unsure pixels can be given to it.

Shapes: K classes, T words, H x W pixels of the label map.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.ensembles._enlarge import Enlarged
from twostage.errors import TwostageError
from twostage.ops.fusion import class_maps, strips
from twostage.types import DenseScores, Evidence, Segmentation, WordScores
from twostage.vocabulary import Vocabulary

NAME = "background"
"""A class with this name is everything else, where the vocabulary says of none that it is."""


class PerWordEnsemble:
    """Labels from the dense map alone, its words in one softmax.

    Raises:
        TwostageError: a threshold lies outside [0, 1], there is no dense map, or none that knows the words.
    """

    weighs = ("dense",)
    """The parts of the evidence that it understands."""

    @dataclass(frozen=True)
    class Config:
        """probability: pixels whose best class is less probable become background; area: classes that win
        less than this share of all pixels that are not background are taken out before, and their pixels go
        to the next best (both 0: off, else the vocabulary needs a background); scores: return the class map
        at output size too (K x H x W float32), 0 where a threshold took a class out; confidence: return the
        share of each pixel's label in that map (H x W float32).
        """

        probability: float = 0.0
        area: float = 0.0
        scores: bool = False
        confidence: bool = False

        def __post_init__(self) -> None:
            for option in ("probability", "area"):
                if not 0 <= getattr(self, option) <= 1:
                    raise TwostageError(
                        f"PerWordEnsemble: {option} must lie in [0, 1], got {getattr(self, option)}."
                    )

    def __init__(self, config: Config) -> None:
        self.config = config

    @torch.no_grad()
    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        """Labels of evidence.size_hw, int32; every pixel gets one."""
        maps = _ClassMaps(*_words(evidence, vocabulary), len(vocabulary), evidence.size_hw)
        config, size = self.config, evidence.size_hw
        rest = self._rest(vocabulary)
        out = None if rest is None or not config.area else self._too_small(maps, rest)
        labels = torch.empty(size, dtype=torch.int32, device=maps.device)
        kept = torch.empty(len(vocabulary), *size, device=maps.device) if config.scores else None
        sure = torch.empty(size, device=maps.device) if config.confidence else None
        for first, last, probs in maps.strips():
            if out is not None:
                probs[out] = 0
            value, best = probs.max(dim=0)  # on CPUs several times faster than argmax over the first axis
            if rest is not None and config.probability:
                unsure = value < config.probability
                best.masked_fill_(unsure, rest)
                if kept is not None or sure is not None:
                    probs.masked_fill_(unsure & (_places(probs) != rest), 0)
            labels[first:last] = best.int()
            if sure is not None:
                total = probs.sum(dim=0).clamp(min=torch.finfo(torch.float32).tiny)
                sure[first:last] = probs.gather(0, best[None])[0] / total
            if kept is not None:
                kept[:, first:last] = probs
        return Segmentation(labels, kept, sure, {"parts": self.weighs, "taken_out": _count(out)})

    def _rest(self, vocabulary: Vocabulary) -> int | None:
        """The class that unsure pixels get, None where no threshold asks for one."""
        if not self.config.probability and not self.config.area:
            return None
        named = (place for place, names in enumerate(vocabulary.names) if NAME in names)
        found = next(named, None) if vocabulary.background is None else vocabulary.background
        if found is None:
            raise TwostageError(
                f"PerWordEnsemble: probability {self.config.probability:g} and area {self.config.area:g} "
                f"need a class that is everything else, and none of the {len(vocabulary)} classes is called "
                f"{NAME!r}: add one, or set both to 0."
            )
        return found

    def _too_small(self, maps: _ClassMaps, rest: int) -> Tensor:
        """(K,) bool: classes that win less than `area` of the pixels that `rest` does not win."""
        pixels = torch.zeros(maps.num_classes, dtype=torch.int64, device=maps.device)
        for _, _, probs in maps.strips():
            pixels += probs.max(dim=0).indices.flatten().bincount(minlength=maps.num_classes)
        others = pixels.sum() - pixels[rest]
        small = pixels < self.config.area * others
        small[rest] = False
        return small

    @classmethod
    def tiny(cls) -> PerWordEnsemble:
        """The ensemble as it is; it costs nothing."""
        return cls(cls.Config())


class _ClassMaps:
    """Class probabilities at the label map's size, a strip of rows at a time: they exist whole nowhere."""

    def __init__(
        self, rows: Tensor, class_of: Tensor | None, num_classes: int, size_hw: tuple[int, int]
    ) -> None:
        """rows: (T, h, w) logits; class_of: (T,), None where words are classes."""
        self._enlarged, self._class_of = Enlarged(DenseScores(rows), size_hw), class_of
        self.num_classes, self._size_hw = num_classes, size_hw

    @property
    def device(self) -> torch.device:
        """Where the rows lie."""
        return self._enlarged.device

    def strips(self) -> Iterator[tuple[int, int, Tensor]]:
        """First and end row, and (K, end - first, W) float32 probabilities, to be changed at will."""
        for first, last in strips(self._enlarged.num_maps, self._size_hw):
            probs = self._enlarged.rows(first, last).softmax(dim=0)
            if self._class_of is not None:
                probs = class_maps(probs[None], self._class_of, self.num_classes)[0]
            yield first, last, probs


def _words(evidence: Evidence, vocabulary: Vocabulary) -> tuple[Tensor, Tensor | None]:
    """(T, h, w) logits of words and the class of each, None where words are classes."""
    scores = evidence.dense
    if scores is None:
        raise TwostageError(
            "PerWordEnsemble: the evidence has no dense map: set DENSE.NAME, or choose another ENSEMBLE.NAME."
        )
    if len(scores.logits) != len(vocabulary):
        raise TwostageError(
            f"PerWordEnsemble: the dense map should have {len(vocabulary)} classes as the vocabulary, "
            f"got {len(scores.logits)}."
        )
    if isinstance(scores, WordScores):
        return scores.rows, scores.class_of
    if len(vocabulary.every_name) != len(vocabulary):
        raise TwostageError(
            f"PerWordEnsemble: {len(vocabulary)} classes have {len(vocabulary.every_name)} names, but the "
            f"dense map ({type(scores).__name__}) speaks of classes only: set DENSE.NAME readout."
        )
    return scores.logits, None


def _places(probs: Tensor) -> Tensor:
    """(K, 1, 1): 0..K-1."""
    return torch.arange(len(probs), device=probs.device)[:, None, None]


def _count(taken_out: Tensor | None) -> int:
    return 0 if taken_out is None else int(taken_out.sum())
