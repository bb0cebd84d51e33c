"""How far masks overlap, and which remain when near-duplicates are dropped.

N and M masks; counts come from matrix products over the pixels, a strip of rows at a time, so that no pair
of masks is ever looked at alone and the float copies stay small.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twostage.types.base import require

STRIP_VALUES = 2**22
"""Float32 values of all masks together in one strip (16 MiB)."""


def pairwise_iou(masks: Tensor, other: Tensor | None = None, stride: int = 1) -> Tensor:
    """Intersection over union of every mask with every other, 0 where both are empty.

    masks: (N, H, W) bool; other: (M, H, W) bool of the same size on the same device, or None for the masks
    themselves; stride: only every stride-th row and column is looked at, from the first (a mask that has no
    pixel there counts as empty). Returns (N, M) float32 on the masks' device, from exact counts.

    Raises:
        ShapeError: other kinds or sizes, or a stride below 1.
    """
    require(stride >= 1, f"pairwise_iou: stride must be at least 1, got {stride}")
    own = _sampled(masks, stride)
    others = own if other is None else _sampled(other, stride)
    require(
        own.shape[1:] == others.shape[1:],
        f"pairwise_iou: masks of {tuple(masks.shape[1:])} and of {tuple(others.shape[1:])} pixels",
    )
    both = torch.zeros(len(own), len(others), dtype=torch.int64, device=own.device)
    mine, theirs = both.new_zeros(len(own)), both.new_zeros(len(others))
    height, width = own.shape[1:]
    rows = max(1, STRIP_VALUES // max((len(own) + len(others)) * width, 1))
    for top in range(0, height, rows):
        left = own[:, top : top + rows].flatten(1).float()
        right = left if other is None else others[:, top : top + rows].flatten(1).float()
        # Counts below 2^24 are exact in float32, and a strip has fewer pixels.
        both += (left @ right.T).long()
        mine += left.sum(dim=1).long()
        theirs += right.sum(dim=1).long()
    union = mine[:, None] + theirs[None] - both
    return (both.double() / union.clamp(min=1)).float()


def mask_nms(masks: Tensor, scores: Tensor, iou: float, stride: int = 1) -> Tensor:
    """Non-maximum suppression: of masks that overlap by more than `iou` only the best stays.

    masks: (N, H, W) bool; scores: (N,), of equal ones the earlier mask is the better; stride: see
    `pairwise_iou`. A mask falls only to one that stays, and an empty one falls to none. Returns (K,) int64,
    the masks that stay, best first, on the masks' device.

    Raises:
        ShapeError: masks of another kind, or another number of scores.
    """
    require(
        scores.shape == (len(masks),),
        f"mask_nms: expected ({len(masks)},) scores, got {tuple(scores.shape)}",
    )
    order = scores.argsort(descending=True, stable=True).to(masks.device)
    overlaps = (pairwise_iou(masks, stride=stride)[order][:, order] > iou).cpu()
    falls = torch.zeros(len(order), dtype=torch.bool)
    for rank in range(len(order)):
        if not falls[rank]:
            falls[rank + 1 :] |= overlaps[rank, rank + 1 :]
    return order[~falls.to(order.device)]


def _sampled(masks: Tensor, stride: int) -> Tensor:
    require(
        masks.ndim == 3 and masks.dtype == torch.bool,
        f"mask_overlap: expected masks (N, H, W) bool, got {tuple(masks.shape)} {masks.dtype}",
    )
    return masks[:, ::stride, ::stride]
