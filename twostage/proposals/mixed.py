"""Proposals from several sources at once: their union, near-duplicates dropped, each mask with its maker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from twostage.interfaces import ProposalGenerator
from twostage.ops.mask_overlap import mask_nms
from twostage.ops.masks import binarise
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest

NORMALISE = ("none", "max", "rank")
COMPARED_SIDE = 256
"""With `stride` 0 masks are compared at about this many pixels squared."""
MakeSource = Callable[[str, Mapping[str, Any]], ProposalGenerator]


@dataclass(frozen=True)
class Entry:
    """One source: its component's name, the component's options, and the factor on its scores."""

    name: str
    options: Mapping[str, Any]
    weight: float


@dataclass(frozen=True)
class MixedConfig:
    """sources: what is mixed, each a name such as "sam", or {name: sam, options: {...}, weight: 1.0}; the
    weight is a factor on the source's scores.

    iou: of masks that overlap by more than this only the one with the best score stays, whoever made them (of
    equal scores the one of the earlier source); 1 keeps all. normalise: what happens to scores before the
    weight, since sources measure with different scales: "none", "max" (a source's best mask of the image gets
    1), "rank" (N masks get 1, (N - 1)/N, ... 1/N; equal ones the same). max_masks: the best this many masks;
    0 keeps all. stride: only every stride-th row and column counts when masks are compared; 0 takes what
    leaves about 256 x 256 pixels.
    """

    sources: tuple[Any, ...]
    iou: float = 0.8
    normalise: Literal["none", "max", "rank"] = "none"
    max_masks: int = 0
    stride: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sources, (list, tuple)) or not self.sources:
            raise ComponentError(
                f"MixedProposals: sources must be a list of one or more sources, got {self.sources!r}."
            )
        for place, one in enumerate(self.sources):
            _entry(place, one)
        if self.normalise not in NORMALISE:
            raise ComponentError(
                f"MixedProposals: unknown normalise {self.normalise!r}.{nearest(self.normalise, NORMALISE)}"
            )
        if not 0 <= self.iou <= 1:
            raise ComponentError(f"MixedProposals: iou must lie in [0, 1], got {self.iou}.")
        for option in ("max_masks", "stride"):
            if not getattr(self, option) >= 0:
                raise ComponentError(
                    f"MixedProposals: {option} must not be negative, got {getattr(self, option)}."
                )

    def entries(self) -> list[Entry]:
        """The sources, spelt out."""
        return [_entry(place, one) for place, one in enumerate(self.sources)]


class MixedProposals:
    """Best score first; soft masks where any source gives soft ones, else bool. `Proposals.sources` names
    each mask's maker.

    Logits are kept where every source speaks of classes, else None: a mask without an opinion would weigh on
    the geometric mean like one that is unsure of everything. Embeddings are kept where all sources are the
    same component: those of different networks have nothing in common.

    Raises:
        ComponentError: an unknown source, one that needs ground truth, or whatever a source raises.
    """

    Config = MixedConfig

    def __init__(self, config: MixedConfig, make_source: MakeSource) -> None:
        """make_source: makes a source of a component's name and options."""
        self.config = config
        self._entries = config.entries()
        self.sources = [make_source(entry.name, entry.options) for entry in self._entries]
        for entry, source in zip(self._entries, self.sources, strict=True):
            if getattr(source, "needs_ground_truth", False):
                raise ComponentError(
                    f"MixedProposals: {entry.name} needs ground truth and cannot be mixed; use it alone."
                )
        self.names_masks = all(getattr(source, "names_masks", False) for source in self.sources)

    @classmethod
    def tiny(cls) -> MixedProposals:
        """A small random network's soft masks and the cells of a grid."""
        from twostage.proposals.grid import GridProposals
        from twostage.proposals.maskformer import MaskFormerProposals

        made: dict[str, ProposalGenerator] = {
            "grid": GridProposals.tiny(),
            "maskformer": MaskFormerProposals.tiny(),
        }
        return cls(cls.Config(sources=tuple(made), normalise="rank"), lambda name, options: made[name])

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) bool or float32, where the first source that works
        on an accelerator has its masks, else on the first source's device.
        """
        found = [source.propose(images, text) for source in self.sources]
        return [self._one(parts) for parts in zip(*found, strict=True)]

    def _one(self, parts: Sequence[Proposals]) -> Proposals:
        devices = [part.masks.device for part in parts]
        device = next((one for one in devices if one.type != "cpu"), devices[0])
        weighed = [
            dataclasses.replace(part, scores=self._scores(part.scores) * entry.weight).to(device)
            for part, entry in zip(parts, self._entries, strict=True)
        ]
        union = Proposals.cat(weighed, source="mixed")
        if len({entry.name for entry in self._entries}) > 1:
            union = dataclasses.replace(union, embeddings=None)
        return union[self._kept(union)[: self.config.max_masks or None]]

    def _scores(self, scores: Tensor) -> Tensor:
        """(N,) of one source in one image -> (N,) on the scale that `normalise` asks for."""
        if self.config.normalise == "none" or not len(scores):
            return scores
        if self.config.normalise == "max":
            return scores / scores.amax() if scores.amax() > 0 else scores
        behind = (scores[None] > scores[:, None]).sum(dim=1)
        return 1 - behind / len(scores)

    def _kept(self, union: Proposals) -> Tensor:
        """(K,) int64: the masks that stay, best first."""
        if self.config.iou >= 1:
            return union.scores.argsort(descending=True, stable=True)
        height, width = union.size_hw
        stride = self.config.stride or max(1, round((height * width) ** 0.5 / COMPARED_SIDE))
        return mask_nms(binarise(union.masks, 0.5), union.scores, self.config.iou, stride)


def _entry(place: int, given: Any) -> Entry:
    """A source as the options give it, spelt out and checked."""
    where = f"MixedProposals: source {place}"
    if isinstance(given, str):
        return Entry(given, {}, 1.0)
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ComponentError(f"{where}: expected a name or {{name: ..., options: ...}}, got {given!r}.")
    allowed = [field.name for field in dataclasses.fields(Entry)]
    for key in given:
        if key not in allowed:
            raise ComponentError(f"{where}: unknown key {key!r}.{nearest(str(key), allowed)}")
    options, weight = given.get("options", {}), given.get("weight", 1.0)
    if not isinstance(options, Mapping):
        raise ComponentError(f"{where} ({given['name']}): options must be a mapping, got {options!r}.")
    if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ComponentError(f"{where} ({given['name']}): weight must be a number above 0, got {weight!r}.")
    return Entry(given["name"], options, float(weight))
