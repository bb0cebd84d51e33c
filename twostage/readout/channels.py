"""Channel suppression: one output channel of a block's MLP brought down to the size of the others.

In CLIP's residual stream a few channels grow out of proportion and rule every LayerNorm after them. GCLIP
("Rethinking the Global Knowledge of CLIP", Wang, Yan, Kang, 2025) normalises the row of the MLP's last layer
that writes such a channel. Here its output is scaled instead, so that the model stays as it is.

Shapes: D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """Factors for some output channels of one MLP. index: (C,) int64; factor: (C,) float32."""

    index: tuple[int, ...]
    factor: tuple[float, ...]

    def scale(self, hidden: Tensor, bias: Tensor | None) -> Tensor:
        """hidden: (..., D), the MLP's output, changed in place: what the weights gave is scaled, the bias is
        not; the same as scaling the rows of the weights.
        """
        for channel, factor in zip(self.index, self.factor, strict=True):
            part = hidden[..., channel]
            shift = 0.0 if bias is None else bias[channel]
            part.copy_((part - shift) * factor + shift)
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
def suppressed(blocks: list[Any], which: Iterable[int]) -> dict[int, Channels]:
    """The scaling of each of these blocks, by block."""
    return {index: loudest(blocks[index]) for index in which}
