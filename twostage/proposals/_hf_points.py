"""Masks from SAM and SAM 2 of the hub: a grid of points, each asking for the masks that it lies in.

Kirillov et al., "Segment Anything", ICCV 2023 (section 5 and appendix B: grid, thresholds, suppression);
Ravi et al., "SAM 2", 2024. Shapes: P points, three masks each, h x w the network's own grid.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms

from twostage.ops.masks import mask_boxes
from twostage.proposals._hf_frame import Frame
from twostage.proposals._hf_models import HubModel

OFFSET = 1.0
"""A mask is steady when its logits cut at +1 and at -1 give nearly the same pixels (the paper's numbers)."""


class Asked(NamedTuple):
    """logits: (N, h, w) of the masks, best first; scores: (N,) predicted IoU."""

    logits: Tensor
    scores: Tensor


class Knobs(NamedTuple):
    """As in HfConfig."""

    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    box_nms_thresh: float


def frame_of(model: HubModel, image_hw: tuple[int, int]) -> Frame:
    """SAM pads the photo to a square, SAM 2 was trained on photos drawn to one."""
    return (Frame.in_square if model.kind == "sam" else Frame.squashed)(image_hw, model.side)


def ask(model: HubModel, frame: Frame, pixels: Tensor, knobs: Knobs) -> Asked:
    """Every point of the grid, `points_per_batch` at a time; the photo is encoded once.

    Steadiness and boxes are measured on the network's own grid, over the cells that hold the photo.
    """
    network: Any = model.network
    encoded = network.get_image_embeddings(pixels)
    kept, scores = [], []
    for points in grid(frame, knobs.points_per_side).to(pixels.device).split(knobs.points_per_batch):
        output = network(image_embeddings=encoded, input_points=points[None, :, None], multimask_output=True)
        logits, quality = output.pred_masks[0].flatten(0, 1), output.iou_scores[0].flatten()
        seen = frame.photo_part(logits)
        good = (
            (quality > knobs.pred_iou_thresh)
            if knobs.pred_iou_thresh > 0
            else torch.ones_like(quality).bool()
        )
        if knobs.stability_score_thresh > 0:
            good &= stability(seen) >= knobs.stability_score_thresh
        good &= (seen > 0).flatten(1).any(dim=1)
        kept.append(logits[good])
        scores.append(quality[good].float())
    logits, quality = torch.cat(kept), torch.cat(scores)
    boxes = mask_boxes((frame.photo_part(logits) > 0).contiguous()).float()
    best = nms(boxes, quality, knobs.box_nms_thresh)
    return Asked(logits[best], quality[best])


def grid(frame: Frame, points_per_side: int) -> Tensor:
    """(P, 2) x and y in the pixels of the network's input: the middles of equal cells of the photo."""
    places = (torch.arange(points_per_side) + 0.5) / points_per_side
    y, x = torch.meshgrid(places, places, indexing="ij")
    height, width = frame.inner_hw
    return torch.stack([x.flatten() * width, y.flatten() * height], dim=1)


def stability(logits: Tensor) -> Tensor:
    """(N, h, w) -> (N,): IoU of the masks cut at +OFFSET and at -OFFSET, 0 where both are empty."""
    high = (logits > OFFSET).flatten(1).sum(dim=1)
    low = (logits > -OFFSET).flatten(1).sum(dim=1)
    return high / low.clamp(min=1)
