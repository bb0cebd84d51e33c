"""Training stage one: a MaskFormer that learns to find masks, with the words of the seen classes as its
only labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twostage.config import SolverConfig
from twostage.data.sample import TrainBatch
from twostage.engine.checkpoint import CheckpointError, load_strictly, read_checkpoint, write_weights
from twostage.engine.optimizer import group_parameters
from twostage.maskformer.criterion import Criterion
from twostage.maskformer.network import MaskFormer
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary, VocabularyError


class ProposalTask:
    """What the engine trains: the network on its device, the losses, and the text bank of the trained
    vocabulary.

    text: one row or more for each class of `vocabulary`, which holds the trained (seen) classes only and
    whose order the class numbers of the batches follow; pseudo: names of the classes among them whose labels
    a model made, which the checkpoint remembers.

    Raises:
        VocabularyError: the text bank is not one of this vocabulary.
    """

    def __init__(
        self,
        network: MaskFormer,
        criterion: Criterion,
        text: TextBank,
        vocabulary: Vocabulary,
        solver: SolverConfig,
        pseudo: Sequence[str] = (),
    ) -> None:
        if text.num_classes != len(vocabulary):
            raise VocabularyError(
                f"ProposalTask: text of {text.num_classes} classes, a vocabulary of {len(vocabulary)}."
            )
        self._network, self._criterion, self._solver = network, criterion, solver
        self.vocabulary, self.pseudo = vocabulary, tuple(pseudo)
        self._text = text.to(self.device)

    @property
    def module(self) -> MaskFormer:
        """The network."""
        return self._network

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self._network.parameters()).device

    def losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Weighted terms of one batch, whose tensors may lie anywhere."""
        network = self._network
        output = network(batch.images.to(self.device, non_blocking=True))
        classes = network.class_logits(output.embeddings, self._text)
        # Wherever the network has a pixel classifier it takes part, so that no parameter is left without a
        # gradient.
        pixels = None if output.pixel_embeddings is None else network.pixel_logits(output, self._text)
        return self._criterion(output, classes, batch, pixels)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups by backbone or head and by kind of decay, as SOLVER says."""
        return group_parameters(self._network, self._solver)

    def state_dict(self) -> dict[str, Any]:
        """{"model": tensors, "vocabulary": {"names": synonyms of each class}, "network": its options}.

        The vocabulary also says "pseudo", names of classes, where a model made some of the labels.
        """
        words: dict[str, Any] = {"names": [list(synonyms) for synonyms in self.vocabulary.names]}
        if self.pseudo:
            words["pseudo"] = list(self.pseudo)
        return {
            "model": self._network.state_dict(),
            "vocabulary": words,
            "network": dataclasses.asdict(self._network.config),
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        """Loads the network strictly. Resuming needs the same vocabulary; mere weights may come from another.

        Raises:
            VocabularyError: resuming from a checkpoint of another vocabulary.
            CheckpointError: the weights do not fit.
        """
        if resuming:
            _require_same(trained_vocabulary(state, where), self.vocabulary, where)
        load_strictly(self._network, state["model"], where)


def trained_vocabulary(state: Mapping[str, Any], where: str) -> Vocabulary:
    """The classes that a checkpoint was trained on, all seen: what evaluation matches by name (`with_seen`).

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    names = (state.get("vocabulary") or {}).get("names")
    if not names:
        raise CheckpointError(f"{where} does not say which classes it was trained on (entry 'vocabulary').")
    return Vocabulary(tuple(tuple(synonyms) for synonyms in names), seen=(True,) * len(names))


def export_weights(checkpoint: str | Path, out: str | Path, half: bool = True) -> None:
    """A checkpoint's weights, vocabulary and network options as a .safetensors file to share; half: in fp16.

    Raises:
        CheckpointError: the checkpoint is unusable or does not say which classes it was trained on.
    """
    state = read_checkpoint(checkpoint)
    trained_vocabulary(state, str(checkpoint))
    tensors = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in state["model"].items()
    }
    metadata: dict[str, Any] = {
        name: state[name] for name in ("vocabulary", "network", "iteration", "version") if name in state
    }
    write_weights(out, tensors, metadata)


def _require_same(stored: Vocabulary, own: Vocabulary, where: str) -> None:
    if stored.names == own.names:
        return
    added = [name for name in own.shown if name not in stored.shown]
    lost = [name for name in stored.shown if name not in own.shown]
    what = "; ".join(
        text
        for text, found in (
            (f"new here: {', '.join(added[:10])}", added),
            (f"missing here: {', '.join(lost[:10])}", lost),
            ("the same names in another order or with other synonyms", not added and not lost),
        )
        if found
    )
    raise VocabularyError(
        f"{where} was trained on another vocabulary ({len(stored)} classes, here {len(own)}; {what}). "
        "Resume with the data set it was trained on, or start anew from its weights with MODEL.WEIGHTS."
    )
