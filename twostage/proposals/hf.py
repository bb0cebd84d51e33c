"""Proposals from networks that others published: MaskFormer, Mask2Former, OneFormer, EoMT, SAM and SAM 2.

They come through transformers and are used without their classes: a network of queries gives one soft mask a
query, SAM the masks under a grid of points.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twostage.proposals import _hf_models, _hf_points, _hf_queries
from twostage.proposals._hf_models import HubModel
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest


@dataclass(frozen=True)
class HfConfig:
    """weights: a folder as save_pretrained() writes it, or a name on the Hugging Face hub, fetched on first
    use; only safetensors are read. revision: branch, tag or commit on the hub; empty takes the newest.

    size: shorter edge of what a network of queries sees, pixels; 0 takes what was published with the weights
    (EoMT and SAM know but one). min_score: masks that score lower are dropped; 0 keeps all. max_masks: the
    best this many masks; 0 keeps all. task: what OneFormer is asked for, "panoptic", "instance", "semantic".

    Of SAM and SAM 2: points_per_side: the grid has this number squared of points, three masks each;
    points_per_batch: points in one pass of the mask decoder, bounds memory; pred_iou_thresh,
    stability_score_thresh: masks are kept whose predicted quality is above the first and whose steadiness
    reaches the second; 0 keeps all; box_nms_thresh: of masks whose boxes overlap by more (IoU) the better
    stays; 1 keeps all.
    """

    weights: str
    revision: str = ""
    size: int = 0
    min_score: float = 0.0
    max_masks: int = 0
    task: Literal["panoptic", "instance", "semantic"] = "panoptic"
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.8
    stability_score_thresh: float = 0.95
    box_nms_thresh: float = 0.7

    def __post_init__(self) -> None:
        if self.task not in _hf_queries.TASKS:
            raise ComponentError(
                f"HfProposals: unknown task {self.task!r}.{nearest(self.task, _hf_queries.TASKS)}"
            )
        for option in ("size", "min_score", "max_masks", "pred_iou_thresh", "stability_score_thresh"):
            if not getattr(self, option) >= 0:
                raise ComponentError(
                    f"HfProposals: {option} must be at least 0, got {getattr(self, option)}."
                )
        for option in ("points_per_side", "points_per_batch"):
            if not getattr(self, option) >= 1:
                raise ComponentError(
                    f"HfProposals: {option} must be at least 1, got {getattr(self, option)}."
                )
        if not 0 <= self.box_nms_thresh <= 1:
            raise ComponentError(
                f"HfProposals: box_nms_thresh must lie in [0, 1], got {self.box_nms_thresh}."
            )


class HfProposals:
    """Masks of the image's size on the network's device, best first; they may overlap. Text is ignored.

    Networks of queries give soft masks, with the score (1 - p("no object")) x mean probability inside the
    mask and the query's last state as embedding, of length one (in the network's own space, not CLIP's); SAM
    gives bool masks with its own estimate of their IoU.

    Raises:
        ComponentError: transformers is not installed or too old, or the model gives no masks.
        WeightsError: no such folder (at once); no network, or files that do not fit (at first use).
    """

    Config = HfConfig

    def __init__(self, config: HfConfig, device: torch.device | str) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise ComponentError("HfProposals needs the package transformers: pip install 'twostage[hf]'.")
        self.config = config
        self.device = torch.device(device)
        _hf_models.check(config.weights)
        self._load = lambda: _hf_models.load(config.weights, config.revision)
        self._model: HubModel | None = None

    @classmethod
    def tiny(cls) -> HfProposals:
        """A small random Mask2Former, the same each time."""
        made = cls(cls.Config(weights="random/tiny"), "cpu")
        made._load = _hf_models.tiny
        return made

    @property
    def model(self) -> HubModel:
        """The network with what is known of it; its weights are fetched and read on first use."""
        if self._model is None:
            self._model = self._load()
            self._model.network.to(self.device)
        return self._model

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) float32 in [0, 1] (SAM: bool), scores (N,)."""
        for position, image in enumerate(images):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ComponentError(
                    f"HfProposals: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)} "
                    f"{image.dtype}; give it before any normalisation."
                )
        return [self._one(image) for image in images]

    def _one(self, image: Tensor) -> Proposals:
        model, config = self.model, self.config
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (model.mean, model.std)
        )
        size_hw = (image.shape[1], image.shape[2])
        if model.kind in _hf_models.PROMPTED:
            frame = _hf_points.frame_of(model, size_hw)
            knobs = _hf_points.Knobs(**{name: getattr(config, name) for name in _hf_points.Knobs._fields})
            asked = _hf_points.ask(model, frame, frame.pixels(image, mean, std), knobs)
            best = self._best(asked.scores)
            masks, scores = frame.hard_masks(asked.logits[best]), asked.scores[best]
            seen = masks.flatten(1).any(dim=1)
            return Proposals(masks[seen], scores[seen], source="hf")
        frame = _hf_queries.frame_of(model, size_hw, config.size)
        found = _hf_queries.ask(model, frame, frame.pixels(image, mean, std), config.task)
        best = self._best(found.scores)
        embeddings = None if found.embeddings is None else found.embeddings[best]
        return Proposals(frame.soft_masks(found.logits[best]), found.scores[best], embeddings, source="hf")

    def _best(self, scores: Tensor) -> Tensor:
        """(N,) -> (M,) int64: those of at least min_score, best first, no more than max_masks."""
        order, least = scores.argsort(descending=True, stable=True), self.config.min_score
        if least > 0:
            order = order[scores[order] >= least]
        return order[: self.config.max_masks or None]
