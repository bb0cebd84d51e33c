"""Training the per-pixel baseline: every labelled pixel is to be nearest to its own class's word."""

from __future__ import annotations

from torch import Tensor

from twostage.data.sample import TrainBatch
from twostage.perpixel.network import PerPixelNetwork
from twostage.tasks.words import WordsTask


class PerPixelTask(WordsTask[PerPixelNetwork]):
    """What the engine trains: the network on its device and the text bank of the trained vocabulary."""

    def losses(self, batch: TrainBatch) -> dict[str, Tensor]:
        """{"loss_pixel": cross-entropy}, of weight 1; the batch's tensors may lie anywhere."""
        output = self._network(batch.images.to(self.device, non_blocking=True))
        labels = batch.labels.to(self.device, non_blocking=True)
        return {"loss_pixel": self._network.loss(output, self._text, labels)}
