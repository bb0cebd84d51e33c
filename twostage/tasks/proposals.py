"""Training stage one: a MaskFormer that learns to find masks, with the words of the seen classes as its
only labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from twostage.config import SolverConfig
from twostage.data.sample import TrainBatch
from twostage.engine.checkpoint import read_checkpoint, write_weights
from twostage.maskformer.criterion import Criterion
from twostage.maskformer.network import MaskFormer
from twostage.tasks.words import WordsTask, trained_vocabulary
from twostage.types import TextBank
from twostage.vocabulary import Vocabulary


class ProposalTask(WordsTask[MaskFormer]):
    """What the engine trains: the network on its device, the losses, and the text bank of the trained
    vocabulary.
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
        """The arguments of WordsTask, and the losses."""
        super().__init__(network, text, vocabulary, solver, pseudo)
        self._criterion = criterion

    def losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Weighted terms of one batch, whose tensors may lie anywhere."""
        network = self._network
        output = network(batch.images.to(self.device, non_blocking=True))
        classes = network.class_logits(output.embeddings, self._text)
        # Wherever the network has a pixel classifier it takes part, so that no parameter is left without a
        # gradient.
        pixels = None if output.pixel_embeddings is None else network.pixel_logits(output, self._text)
        return self._criterion(output, classes, batch, pixels)


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
