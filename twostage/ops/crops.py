"""From a photo and a mask to the square picture that CLIP sees: fill the background, normalise, cut, resize.

The order is that of the published two-stage baseline (Xu et al., ECCV 2022): normalise *before* the bicubic
resize, so that borders clamp at the edge of the crop and the mean colour is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fill = Literal["mean", "zero"]
Aspect = Literal["squash", "pad"]


@dataclass(frozen=True)
class Canvas:
    """A photo prepared once for all its crops.

    contrast: (3, H, W) float32, the normalised photo minus the normalised fill colour; fill: (3, 1, 1)
    float32, and None where it is the mean colour, which normalises to exactly 0. A pixel of a crop is `alpha
    * contrast + fill`.
    """

    contrast: Tensor
    fill: Tensor | None


def make_canvas(image_rgb: Tensor, mean: Sequence[float], std: Sequence[float], fill: Fill) -> Canvas:
    """image_rgb: (3, H, W) uint8; mean, std: of colours in [0, 1]; fill: "mean" colour or "zero" (black)."""
    shift = torch.tensor(mean, dtype=torch.float32, device=image_rgb.device).view(3, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=image_rgb.device).view(3, 1, 1)
    colour = fill_colour(mean, std, fill)
    if colour is not None:
        return Canvas(image_rgb / (255.0 * scale), colour.to(image_rgb.device))
    return Canvas((image_rgb - 255.0 * shift).div_(255.0 * scale), None)


def fill_colour(mean: Sequence[float], std: Sequence[float], fill: Fill) -> Tensor | None:
    """(3, 1, 1) float32, the normalised fill colour; None where it is exactly 0."""
    if fill == "mean":
        return None
    return (-torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)).view(3, 1, 1)


def cut_region(canvas: Canvas, alpha: Tensor, box_xyxy: Sequence[int]) -> Tensor:
    """One region at its own size: (3, h, w) float32, normalised, the fill colour outside the mask.

    alpha: (H, W) bool, or float32 in [0, 1] for soft edges; box_xyxy: four ints, end-exclusive, not empty.
    """
    x0, y0, x1, y1 = box_xyxy
    region = canvas.contrast[:, y0:y1, x0:x1] * alpha[y0:y1, x0:x1]
    return region if canvas.fill is None else region.add_(canvas.fill)


def resize_region(
    region: Tensor, out: Tensor, fill: Tensor | None, aspect: Aspect = "squash", antialias: bool = False
) -> None:
    """Bicubic into `out`, (3, S, T) float32, which is overwritten.

    region: (3, h, w) float32. align_corners False, borders clamped. Without `antialias` the kernel is the
    four-tap cubic with a = -0.75, with it the widened one with a = -0.5 (as Pillow's). "squash" ignores the
    region's proportions; "pad" keeps them and puts the fill colour, (3, 1, 1) or None for 0, on both sides of
    the shorter edge.
    """
    height, width = out.shape[-2:]
    if aspect == "squash":
        out.copy_(_bicubic(region, (height, width), antialias))
        return
    zoom = min(height / region.shape[1], width / region.shape[2])
    inner = (max(1, round(region.shape[1] * zoom)), max(1, round(region.shape[2] * zoom)))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    out.copy_(torch.zeros_like(out) if fill is None else fill.expand_as(out))
    out[:, top : top + inner[0], left : left + inner[1]] = _bicubic(region, inner, antialias)


def _bicubic(region: Tensor, size_hw: tuple[int, int], antialias: bool) -> Tensor:
    return F.interpolate(region[None], size_hw, mode="bicubic", align_corners=False, antialias=antialias)[0]
