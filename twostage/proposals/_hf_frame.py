"""What a network of the hub sees of a photo, and the way back from its mask logits to the photo's pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
"""Masks enlarged at a time, so that the logits of all at full size never exist together with the result."""


@dataclass(frozen=True)
class Frame:
    """image_hw: the photo; inner_hw: the photo as the network sees it; padded_hw: the network's input, the
    photo in its top left corner.
    """

    image_hw: tuple[int, int]
    inner_hw: tuple[int, int]
    padded_hw: tuple[int, int]

    @classmethod
    def by_edge(cls, image_hw: tuple[int, int], short: int, long: int, step: int) -> Frame:
        """The shorter edge at `short`, unless the longer one would exceed `long`; padded to multiples of
        `step`.
        """
        factor = min(short / min(image_hw), long / max(image_hw))
        inner = _scaled(image_hw, factor)
        return cls(image_hw, inner, (-(-inner[0] // step) * step, -(-inner[1] // step) * step))

    @classmethod
    def in_square(cls, image_hw: tuple[int, int], side: int) -> Frame:
        """The longer edge at `side`, padded to a square."""
        inner = _scaled(image_hw, side / max(image_hw))
        return cls(image_hw, inner, (side, side))

    @classmethod
    def squashed(cls, image_hw: tuple[int, int], side: int) -> Frame:
        """Both edges at `side`, whatever the photo's shape."""
        return cls(image_hw, (side, side), (side, side))

    def pixels(self, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> (1, 3, *padded_hw) float32 on the device of mean and std (3, 1, 1, in 0..1):
        bilinear with antialias, normalised, padded by 0.
        """
        values = image[None].to(mean.device).float()
        if self.inner_hw != self.image_hw:
            values = F.interpolate(
                values, self.inner_hw, mode="bilinear", align_corners=False, antialias=True
            )
        values = (values.clamp(0, 255) / 255 - mean) / std
        height, width = self.inner_hw
        return F.pad(values, (0, self.padded_hw[1] - width, 0, self.padded_hw[0] - height))

    def photo_part(self, maps: Tensor) -> Tensor:
        """(N, h, w) at any stride of the input -> the cells that hold a part of the photo."""
        rows, columns = (
            -(-cells * inner // padded)
            for cells, inner, padded in zip(maps.shape[1:], self.inner_hw, self.padded_hw, strict=True)
        )
        return maps[:, : max(rows, 1), : max(columns, 1)]

    def enlarged(self, logits: Tensor) -> Tensor:
        """(N, h, w) logits -> (N, H, W) float32 logits of the photo's pixels: bilinear to the input's size,
        padding cut off, bilinear to the photo's size (align_corners False).
        """
        full = F.interpolate(logits[None].float(), self.padded_hw, mode="bilinear", align_corners=False)
        full = full[..., : self.inner_hw[0], : self.inner_hw[1]]
        return F.interpolate(full, self.image_hw, mode="bilinear", align_corners=False)[0]

    def soft_masks(self, logits: Tensor) -> Tensor:
        """(N, h, w) logits -> (N, H, W) float32 probabilities; the sigmoid is taken last."""
        masks = torch.empty(len(logits), *self.image_hw, device=logits.device)
        for first in range(0, len(logits), CHUNK):
            masks[first : first + CHUNK] = self.enlarged(logits[first : first + CHUNK]).sigmoid_()
        return masks

    def hard_masks(self, logits: Tensor) -> Tensor:
        """(N, h, w) logits -> (N, H, W) bool, above 0."""
        masks = torch.empty(len(logits), *self.image_hw, dtype=torch.bool, device=logits.device)
        for first in range(0, len(logits), CHUNK):
            masks[first : first + CHUNK] = self.enlarged(logits[first : first + CHUNK]) > 0
        return masks


def _scaled(size_hw: tuple[int, int], factor: float) -> tuple[int, int]:
    height, width = (max(1, round(side * factor)) for side in size_hw)
    return height, width
