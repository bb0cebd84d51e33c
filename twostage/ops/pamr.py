"""Pixel-adaptive mask refinement: class maps averaged over pixels nearby that have the same colour.

Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, in the form that NACLIP
and its descendants evaluate with.

Shapes: B images, C colours, K maps, H x W pixels, R dilations, 8 R neighbours of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError

AT_ONCE = 2**24
"""Values of the maps that are averaged together; more of them are done in turn."""
_AROUND = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0)]


def pamr(image: Tensor, maps: Tensor, iterations: int = 10, dilations: Sequence[int] = (8, 16)) -> Tensor:
    """Maps whose places agree with neighbours of their colour.

    image: (B, C, H, W) float, each channel in any unit (only differences against the local standard deviation
    count); maps: (B, K, h, w) float, brought to the image's size first (bilinear, corners aligned);
    iterations: how often every pixel becomes the mean of its neighbours; dilations: distances, in pixels, of
    the eight neighbours, all of them averaged together. Returns (B, K, H, W) float32. Beyond the border
    pixels repeat. Memory beside the result: 16 R values a pixel, and a few times AT_ONCE or one map.

    Raises:
        TwostageError: no dilation or one below 1, iterations below 0, another number of images than of maps.
    """
    if not dilations or min(dilations) < 1:
        raise TwostageError(
            f"pamr: expected dilations of 1 pixel or more, got {tuple(dilations)}; 8 and 16 are usual."
        )
    if iterations < 0:
        raise TwostageError(f"pamr: iterations must be at least 0, got {iterations}.")
    if len(image) != len(maps):
        raise TwostageError(
            f"pamr: expected maps of {len(image)} images, got {len(maps)}: give one an image."
        )
    maps, size = maps.float(), (image.shape[-2], image.shape[-1])
    if tuple(maps.shape[-2:]) != size:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    if iterations == 0:
        return maps
    weights = affinity(image.float(), dilations)
    share = max(1, AT_ONCE // (len(maps) * size[0] * size[1]))
    return torch.cat(
        [_averaged(part, weights, iterations, dilations) for part in maps.split(share, dim=1)], 1
    )


def affinity(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """(B, C, H, W) float32 -> (B, 8 R, H, W), the share of every neighbour in a pixel's mean, together one.

    The softmax over all neighbours j of the channels' mean of -|x_i - x_j| / (1e-8 + 0.1 std_i); std_i is the
    unbiased standard deviation of pixel i and its neighbours, pixel i counted once a dilation.
    """
    count = 9 * len(dilations)
    mean = len(dilations) * image
    for moved in _neighbours(image, dilations):
        mean = mean + moved
    mean = mean / count
    spread = len(dilations) * (image - mean) ** 2
    for moved in _neighbours(image, dilations):
        spread += (moved - mean) ** 2
    width = 1e-8 + 0.1 * (spread / (count - 1)).sqrt()
    apart = [((image - moved).abs() / width).mean(dim=1) for moved in _neighbours(image, dilations)]
    return torch.stack(apart, dim=1).neg_().softmax(dim=1)


def _averaged(maps: Tensor, weights: Tensor, iterations: int, dilations: Sequence[int]) -> Tensor:
    """(B, k, H, W) maps, every pixel replaced by its neighbours' weighted mean so many times."""
    for _ in range(iterations):
        total = torch.zeros_like(maps)
        for moved, weight in zip(_neighbours(maps, dilations), weights.unbind(dim=1), strict=True):
            total.addcmul_(moved, weight[:, None])
        maps = total
    return maps


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Views of (B, C, H, W), each moved so that a pixel's neighbour stands in its place; the order is that of
    the weights.
    """
    height, width = maps.shape[-2:]
    margin = max(dilations)
    padded = F.pad(maps, (margin,) * 4, mode="replicate")
    for step in dilations:
        for down, across in _AROUND:
            top, left = margin + step * down, margin + step * across
            yield padded[..., top : top + height, left : left + width]
