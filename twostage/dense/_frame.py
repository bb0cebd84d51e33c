"""From a photo to what a tower takes in: resized, normalised, padded, and the way back.

Shapes: H x W pixels of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.ops.windows import Box

Fit = Literal["round", "pad", "floor"]
"""How an image meets the patch grid: "round" its size to the nearest multiple of a patch, "pad" it with
zeros, or "floor": what is less than a patch, right and below, is not read, and the map is stretched over the
whole, as a convolution with strides does by itself (SCLIP and its descendants)."""


def target_size(
    size_hw: tuple[int, int], short_edge: int, long_edge: int, cell_hw: tuple[int, int], fit: Fit
) -> tuple[int, int]:
    """The size in pixels to bring an image to: short edge as asked (0: as it is), long edge at most
    `long_edge`; halves round up.

    With fit "round" both are multiples of the cell, and at least one cell.
    """
    height, width = size_hw
    scale = 1.0 if short_edge == 0 else short_edge / min(height, width)
    scale = min(scale, long_edge / max(height, width))
    sizes = (height * scale, width * scale)
    if fit != "round":
        return max(1, int(sizes[0] + 0.5)), max(1, int(sizes[1] + 0.5))
    tall, wide = (max(1, round(size / cell)) * cell for size, cell in zip(sizes, cell_hw, strict=True))
    return tall, wide


def to_pixels(
    image: Tensor,
    size_hw: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    antialias: bool = True,
) -> Tensor:
    """RGB uint8 (3, H, W) -> (3, *size_hw) float32, resized (bilinear), then normalised.

    antialias: False takes two pixels on each axis however much the photo shrinks, and rounds to whole grey
    levels: OpenCV's INTER_LINEAR, with which the public dense evaluations resize.
    """
    pixels = image[None].float()
    if tuple(image.shape[1:]) != size_hw:
        pixels = F.interpolate(
            pixels, size=size_hw, mode="bilinear", align_corners=False, antialias=antialias
        )
        pixels = pixels if antialias else pixels.round()
    pixels = pixels / 255
    shape = (1, 3, 1, 1)
    pixels = (pixels - pixels.new_tensor(mean).reshape(shape)) / pixels.new_tensor(std).reshape(shape)
    return pixels[0]


def to_masks(masks: Tensor, size_hw: tuple[int, int], device: torch.device) -> Tensor:
    """(N, H, W) bool or float masks of an image -> (N, *size_hw), resized as its pixels (float then)."""
    masks = masks.to(device)
    if tuple(masks.shape[1:]) == size_hw:
        return masks
    if len(masks) == 0:
        return masks.new_zeros((0, *size_hw))
    soft = F.interpolate(masks[None].float(), size_hw, mode="bilinear", align_corners=False, antialias=True)
    return soft[0].clamp(0, 1)


def pad_masks(masks: list[Tensor] | None, padded_hw: tuple[int, int], inside: Box) -> list[Tensor] | None:
    """(N, H, W) masks of each image -> the same for what `onto_cells` lets a tower read: nothing where it put
    zeros, and cut as it cut.

    padded_hw: the size that is read; inside: where the image lies.
    """
    top, left = inside[:2]
    if masks is None:
        return None
    return [
        F.pad(one, (left, padded_hw[1] - left - one.shape[2], top, padded_hw[0] - top - one.shape[1]))
        for one in masks
    ]


def pad_to_cells(pixels: Tensor, cell_hw: tuple[int, int]) -> tuple[Tensor, Box]:
    """(B, 3, H, W) normalised -> the same with zeros around it, its size a multiple of the cell, and where it
    lies in it.

    The padding is centred, the odd pixel right and below (as in ClearCLIP and ProxyCLIP, Lan et al., 2024).
    """
    height, width = pixels.shape[-2:]
    down, across = -height % cell_hw[0], -width % cell_hw[1]
    top, left = down // 2, across // 2
    padded = F.pad(pixels, (left, across - left, top, down - top))
    return padded, (top, left, top + height, left + width)


def onto_cells(pixels: Tensor, cell_hw: tuple[int, int], fit: Fit) -> tuple[Tensor, tuple[int, int], Box]:
    """(B, 3, H, W) normalised -> what a tower reads of it, whole cells; the size in pixels that its grid
    stands for; and where the image lies in that.
    """
    height, width = pixels.shape[-2:]
    if fit == "floor" and height >= cell_hw[0] and width >= cell_hw[1]:
        whole = pixels[..., : height - height % cell_hw[0], : width - width % cell_hw[1]]
        return whole, (height, width), (0, 0, height, width)
    padded, inside = pad_to_cells(pixels, cell_hw)
    return padded, (padded.shape[-2], padded.shape[-1]), inside


def to_full_size(maps: Tensor, padded_hw: tuple[int, int], inside: Box) -> Tensor:
    """(B, C, h, w) grid of a padded image -> (B, C, H, W) at its pixels, padding cut off (bilinear)."""
    full = F.interpolate(maps, size=padded_hw, mode="bilinear", align_corners=False)
    top, left, bottom, right = inside
    return full[..., top:bottom, left:right]
