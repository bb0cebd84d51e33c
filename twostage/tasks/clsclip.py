"""Training ClsCLIP: of every photo one class is drawn, whose pixels are to be told from the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twostage.clip.model import ClipModel
from twostage.clsclip.network import ClsClipNetwork
from twostage.config import ClsClipConfig, SolverConfig
from twostage.data.sample import TrainBatch
from twostage.engine.checkpoint import CheckpointError
from twostage.tasks.words import WordsTask
from twostage.types import VOID, TextBank
from twostage.vocabulary import Vocabulary


class ClsClipTask(WordsTask[ClsClipNetwork]):
    """What the engine trains: the map and the decoder. CLIP takes part and is no part of the module, so that
    neither an optimiser nor a checkpoint reaches it.
    """

    def __init__(
        self,
        network: ClsClipNetwork,
        clip: ClipModel,
        text: TextBank,
        vocabulary: Vocabulary,
        solver: SolverConfig,
        options: ClsClipConfig,
    ) -> None:
        """text, vocabulary: of the base classes; the labels of the batches may have one class more behind
        them, background.
        """
        super().__init__(network, text, vocabulary, solver)
        self._clip, self._options = clip, options
        self._mean = torch.tensor(clip.mean, device=self.device).view(3, 1, 1)
        self._std = torch.tensor(clip.std, device=self.device).view(3, 1, 1)

    def losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """{"loss_mask": cross-entropy of background and foreground}, mean over all labelled pixels of the
        samples that have a class to ask for; 0 where none has.
        """
        drawn = [self._ask(batch, image) for image in range(len(batch))]
        images = torch.tensor([image for image, label in enumerate(drawn) if label >= 0], dtype=torch.int64)
        if not len(images):
            nothing = torch.stack([parameter.sum() for parameter in self._network.parameters()]).sum() * 0.0
            return {"loss_mask": nothing}
        asked = torch.tensor(drawn)[images]
        labels = batch.labels[images]
        target = torch.where(labels == VOID, VOID, (labels == asked[:, None, None]).long())
        maps = self._network(
            self._clip.visual,
            self._normalised(batch.images[images]),
            self._words(asked),
        )
        full = functional.interpolate(maps, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        return {"loss_mask": binary_cross_entropy(full, target.to(self.device, non_blocking=True))}

    def _ask(self, batch: TrainBatch, image: int) -> int:
        """A class of the sample, each as likely; now and then one that it does not show; -1 for none."""
        count, options = len(self.vocabulary), self._options
        there = batch.classes[image]
        if options.absent and float(torch.rand(())) < options.absent:
            others = sorted(set(range(count)) - set(there.tolist()))
            return others[int(torch.randint(len(others), ()))] if others else -1
        areas = batch.masks[image].flatten(1).sum(dim=1)
        fit = there[(there < count) & (areas >= options.min_area)]
        return int(fit[int(torch.randint(len(fit), ()))]) if len(fit) else -1

    def _words(self, asked: Tensor) -> Tensor:
        """(P,) classes -> (P, E): of a class with synonyms one of them, each as likely."""
        rows = []
        for label in asked.tolist():
            own = (self._text.class_of == label).nonzero()[:, 0]
            rows.append(own[int(torch.randint(len(own), ())) if len(own) > 1 else 0])
        return self._text.features[torch.stack(rows)]

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device, non_blocking=True).float() / 255
        return ((pixels - self._mean) / self._std).to(self._clip.dtype)

    def state_dict(self) -> dict[str, Any]:
        """WordsTask's, and which CLIP took part: {"clip": {"name", "digest"}}."""
        return {**super().state_dict(), "clip": {"name": self._clip.name, "digest": self._clip.digest}}

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        """As WordsTask.

        Raises:
            CheckpointError: it was trained with another CLIP.
        """
        require_same_clip(state, self._clip, where)
        super().load_state_dict(state, where, resuming)


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """(P, 2, H, W) logits of background and foreground, (P, H, W) int64 of 0, 1 and VOID -> their mean
    cross-entropy over all pixels that are not VOID; 0 where there are none.
    """
    total = functional.cross_entropy(logits.float(), target, ignore_index=VOID, reduction="sum")
    return total / (target != VOID).sum().clamp(min=1)


def require_same_clip(state: Mapping[str, Any], clip: ClipModel, where: str) -> None:
    """Raises CheckpointError where a ClsCLIP was trained with a CLIP of another name: its map and decoder
    mean nothing there.
    """
    name = (state.get("clip") or {}).get("name")
    if name is not None and name != clip.name:
        raise CheckpointError(
            f"{where} was trained with {name}, CLIP.MODEL is {clip.name}: set CLIP.MODEL {name}."
        )
