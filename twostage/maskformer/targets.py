"""What the losses compare with: masks of the classes present, at the size that the batch was padded to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Targets(Protocol):
    """The part of a training batch that the losses read (twostage.data.sample.TrainBatch has it).

    masks: B tensors (M_b, H, W) bool; classes: B tensors (M_b,) int64, index into the training vocabulary;
    labels: (B, H, W) int64 of the same indices, negative where ignored; image_ids: B names, for messages.
    """

    @property
    def masks(self) -> Sequence[Tensor]: ...

    @property
    def classes(self) -> Sequence[Tensor]: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def image_ids(self) -> Sequence[str]: ...


def padded_masks(targets: Targets, padded_hw: tuple[int, int], device: torch.device) -> list[Tensor]:
    """B tensors (M_b, H', W') float32 in {0, 1}: padding counts as outside, as in the paper."""
    height, width = padded_hw
    padded = []
    for masks in targets.masks:
        border = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
        padded.append(functional.pad(masks.to(device), border).float())
    return padded


def shrink(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(M, H', W') -> (M, h, w) by the nearest pixel."""
    if not len(masks):
        return masks.new_zeros(0, *size_hw)
    return functional.interpolate(masks[:, None], size=size_hw, mode="nearest")[:, 0]
