"""Channel suppression: one output channel of a block's MLP brought down to the size of the others.

In CLIP's residual stream a few channels grow out of proportion and rule every LayerNorm after them. GCLIP
("Rethinking the Global Knowledge of CLIP", Wang, Yan, Kang, 2025) normalises the row of the MLP's last layer
that writes such a channel. Here its output is scaled instead, so that the model stays as it is.

Shapes: D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Channels:
    """Factors for some output channels of one MLP. index: (C,) int64; factor: (C,) float32; with_bias: scale
    the bias as well.
    """

    index: tuple[int, ...]
    factor: tuple[float, ...]
    with_bias: bool = False

    def scale(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """hidden: (..., D), the MLP's output, changed in place: what the weights gave is scaled, the bias is
        not unless asked; the same as scaling the rows of the weights.
        """
        for channel, factor in zip(self.index, self.factor, strict=True):
            part = hidden[..., channel]
            part *= factor
            if bias is not None and not self.with_bias:
                part += bias[channel] * (1 - factor)
        return hidden


def loudest(block: Any) -> Channels:
    """The channel whose row of the MLP's last layer is longest, and the factor that makes it as long as the
    mean of the others.
    """
    lengths = block.mlp.c_proj.weight.detach().float().norm(dim=1)
    channel = int(lengths.argmax())
    others = (lengths.sum() - lengths[channel]) / max(1, len(lengths) - 1)
    return Channels((channel,), (float(others / lengths[channel]),))


@torch.no_grad()
def suppressed(blocks: list[Any], which: Iterable[int], with_bias: bool = False) -> dict[int, Channels]:
    """The scaling of each of these blocks, by block; says in the log which channels they are."""
    found = {index: replace(loudest(blocks[index]), with_bias=with_bias) for index in which}
    if found:
        logger.info(
            "Suppressed channels: %s",
            ", ".join(f"block {i}: {one.index[0]} x {one.factor[0]:.3f}" for i, one in found.items()),
        )
    return found
