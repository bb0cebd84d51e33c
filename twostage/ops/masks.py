"""What a stack of masks says about itself: boxes, areas, and the way from stride-4 logits to full-size
probabilities.

Nothing here loops over single masks or waits for the device once per mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MASKS_AT_ONCE = 8
"""Masks that are enlarged together."""
LOGIT_FLOOR = -80.0
"""Mask logits below this count as this much, a probability of 2e-35."""


def binarise(masks: Tensor, threshold: float) -> Tensor:
    """(N, H, W) float or bool -> (N, H, W) bool; a soft mask is set where it is *strictly* above the
    threshold.
    """
    return masks if masks.dtype == torch.bool else masks > threshold


def mask_boxes(binary: Tensor) -> Tensor:
    """Tight boxes of bool masks.

    binary: (N, H, W) bool, contiguous or not -> (N, 4) int64 on the same device: x0, y0, x1, y1 in pixels,
    end-exclusive (a single pixel at the origin gives 0, 0, 1, 1); all four are -1 where the mask is empty.
    """
    bits = binary.view(
        torch.uint8
    )  # amax over bytes is vectorised, any() over bools is not (50 times slower)
    x0, x1, filled = _first_and_last(bits.amax(dim=1))
    y0, y1, _ = _first_and_last(bits.amax(dim=2))
    boxes = torch.stack([x0, y0, x1, y1], dim=1)
    return torch.where(filled[:, None], boxes, -1)


def _first_and_last(profile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L) of 0 and 1 -> index of the first 1, one past the last 1, and whether there is any; (N,) each."""
    length = profile.shape[1]
    found = profile.int()
    return found.argmax(dim=1), length - found.flip(1).argmax(dim=1), found.any(dim=1)


def expand_boxes(boxes_xyxy: Tensor, ratio: float, size_hw: tuple[int, int]) -> Tensor:
    """Boxes grown about their centres, cut to whole pixels towards zero, clamped to the image.

    boxes_xyxy: (N, 4) int64, end-exclusive; empty ones (-1) stay as they are. A box that shrinks below one
    pixel keeps one. Ratio 1 changes nothing.
    """
    if ratio == 1.0:
        return boxes_xyxy
    height, width = size_hw
    corners = boxes_xyxy.double()
    centre = (corners[:, :2] + corners[:, 2:]) / 2
    half = (corners[:, 2:] - corners[:, :2]) * ratio / 2
    limit = torch.tensor([width, height], device=boxes_xyxy.device)
    low = (centre - half).trunc().long().clamp(min=0).minimum(limit - 1)
    high = (centre + half).trunc().long().clamp(min=0).minimum(limit).maximum(low + 1)
    grown = torch.cat([low, high], dim=1)
    return torch.where(boxes_xyxy[:, :1] >= 0, grown, boxes_xyxy)


def mask_areas(binary: Tensor) -> Tensor:
    """(N, H, W) bool -> (N,) int64, set pixels of each mask."""
    return binary.view(torch.uint8).flatten(1).sum(dim=1, dtype=torch.int64)


def upsample_mask_logits(logits: Tensor, padded_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """Mask logits of a padded network input -> probabilities at the true image size.

    logits: (N, h, w) float at any stride; padded_hw: size of the padded input they cover; size_hw: the image
    without its right and bottom padding. Returns (N, H, W) float32 in [0, 1]: bilinear (align_corners False),
    cut, *then* sigmoid (MaskFormer, Cheng et al. 2021).
    """
    height, width = size_hw
    masks = torch.empty(len(logits), height, width, device=logits.device)
    # A few at a time: all of them at the padded size would take as much memory again.
    for few, out in zip(logits.split(MASKS_AT_ONCE), masks.split(MASKS_AT_ONCE), strict=True):
        # Below the floor a probability is no normal number any more, and arithmetic with it crawls.
        few = few[None].float().clamp(min=LOGIT_FLOOR)
        full = F.interpolate(few, padded_hw, mode="bilinear", align_corners=False)[0]
        torch.sigmoid(full[:, :height, :width], out=out)
    return masks


def mean_on_grid(masks: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """The share of each grid cell that a mask covers: (N, H, W) float or bool -> (N, h, w) float32 in [0, 1].

    Cells of a grid finer than the masks take the mask's value under them.
    """
    if masks.device.type != "cpu" or len(masks) == 0:
        return F.adaptive_avg_pool2d(masks.float(), grid_hw)
    # A few at a time, whose float copies stay in the processor's cache: a hundred at once take twice as long.
    return torch.cat([F.adaptive_avg_pool2d(few.float(), grid_hw) for few in masks.split(8)])
