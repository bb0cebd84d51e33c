"""ClsCLIP+: boxes of class-agnostic masks looked at again, enlarged, and their answers united.

The paper takes boxes and labels from a detector that knows all classes, and asks a class for the boxes of its
own label. Stage one's masks have no label, so the look at the whole image decides which boxes a class is
asked for: those whose mask it fills with enough probability on average. A class without any such box keeps
its look at the whole image (the paper says nothing of this case). Which mask a place gets is the union over
boxes: with logits, the largest.

Shapes: K classes, M kept of them, R boxes, h x w grid of the whole image's maps, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twostage.ops.masks import binarise, mask_boxes, mean_on_grid
from twostage.types import Proposals

CELLS = 4
"""A canvas has this many cells for one of the whole image's grid, each way: boxes are finer."""


@dataclass(frozen=True)
class Plan:
    """boxes_xyxy: (R, 4) int64 pixels, end-exclusive; asked: (R, K) bool, which class looks at which box;
    kept: (K,) bool, the classes that are looked for at all.
    """

    boxes_xyxy: Tensor
    asked: Tensor
    kept: Tensor

    def classes_of(self, box: int) -> list[int]:
        """The classes that look at a box, ascending."""
        return [int(label) for label in self.asked[box].nonzero()[:, 0]]


def plan(maps: Tensor, found: Proposals, max_classes: int, box_score: float, min_box: int) -> Plan:
    """maps: (K, h, w) logits of the whole image -> which class looks at which box.

    Classes are ranked by the probability they have at their best place. Empty masks, boxes with a side below
    min_box pixels and boxes that no class looks at are left out.
    """
    count = len(maps)
    kept = torch.zeros(count, dtype=torch.bool, device=maps.device)
    kept[maps.flatten(1).amax(dim=1).topk(min(max_classes, count)).indices] = True
    if len(found) == 0:
        none = torch.zeros(0, 4, dtype=torch.int64, device=maps.device)
        return Plan(none, torch.zeros(0, count, dtype=torch.bool, device=maps.device), kept)
    masks = binarise(found.masks, 0.5).to(maps.device)
    boxes = mask_boxes(masks)
    large = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= min_box
    inside = mean_on_grid(masks, (maps.shape[1], maps.shape[2])).flatten(1)
    share = inside / inside.sum(dim=1, keepdim=True).clamp(min=1e-6)
    score = share @ maps.sigmoid().flatten(1).T
    asked = (score >= box_score) & kept & large[:, None]
    chosen = asked.any(dim=1)
    return Plan(boxes[chosen], asked[chosen], kept)


def grown(boxes_xyxy: Tensor, padding: float, size_hw: tuple[int, int]) -> Tensor:
    """Boxes with `padding` of their sides added, half on each side, whole pixels outwards, inside the
    image.
    """
    height, width = size_hw
    corners = boxes_xyxy.double()
    more = (corners[:, 2:] - corners[:, :2]) * padding / 2
    limit = torch.tensor([width, height], device=boxes_xyxy.device)
    low = (corners[:, :2] - more).floor().long().clamp(min=0)
    high = (corners[:, 2:] + more).ceil().long().minimum(limit)
    return torch.cat([low, high], dim=1)


class Canvas:
    """The union of what classes find in their boxes."""

    def __init__(self, whole: Tensor, plan: Plan, absent: float, size_hw: tuple[int, int]) -> None:
        """whole: (K, h, w) logits of the whole image, which classes without a box keep; absent: the logit of
        places in no box and of classes that are not looked for; size_hw: the image in pixels.
        """
        size = (min(size_hw[0], CELLS * whole.shape[1]), min(size_hw[1], CELLS * whole.shape[2]))
        self._size_hw = size_hw
        self.maps = functional.interpolate(whole[None], size, mode="bilinear", align_corners=False)[0]
        self.maps[plan.asked.any(dim=0) | ~plan.kept] = absent

    def paste(self, box_xyxy: list[int], classes: list[int], maps: Tensor) -> None:
        """maps: (C, h', w') logits of these classes in this box."""
        tall, wide = self.maps.shape[1:]
        rows, columns = tall / self._size_hw[0], wide / self._size_hw[1]
        left, top, right, bottom = box_xyxy
        first, before = int(top * rows + 0.5), int(left * columns + 0.5)
        last, behind = max(first + 1, int(bottom * rows + 0.5)), max(before + 1, int(right * columns + 0.5))
        first, before = min(first, tall - 1), min(before, wide - 1)
        last, behind = min(last, tall), min(behind, wide)
        size = (last - first, behind - before)
        small = functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
        for label, own in zip(classes, small, strict=True):
            place = self.maps[label, first:last, before:behind]
            torch.maximum(place, own, out=place)
