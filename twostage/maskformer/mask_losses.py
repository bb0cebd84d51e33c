"""How far predicted masks are from true ones: focal, plain cross-entropy and dice terms, as sums over pixels.

Each term comes as a loss for matched pairs and as a cost of every pair; the costs are matrix products.
Shapes: P predictions, M true masks, S pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2


def focal_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Focal term (Lin et al., 2017) of each pixel, were it true and were it false; both shaped as logits."""
    probability = logits.sigmoid()
    as_true = FOCAL_ALPHA * (1 - probability) ** FOCAL_GAMMA * functional.softplus(-logits)
    as_false = (1 - FOCAL_ALPHA) * probability**FOCAL_GAMMA * functional.softplus(logits)
    return as_true, as_false


def bce_parts(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pixel, were it true and were it false; both shaped as logits."""
    return functional.softplus(-logits), functional.softplus(logits)


PIXEL_TERMS = {"focal": focal_parts, "bce": bce_parts}


def pixel_loss(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """(M, S) logits, (M, S) float targets in {0, 1} -> (M,) mean over pixels of the term called `kind`.

    Turning the sign where the target is 0 makes one case of two: half the work of `focal_parts`.
    """
    wrong = logits * (1 - 2 * targets)
    loss = functional.softplus(wrong)
    if kind == "focal":
        share = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
        loss = share * wrong.sigmoid() ** FOCAL_GAMMA * loss
    return loss.mean(dim=1)


def pixel_cost(logits: Tensor, targets: Tensor, kind: str) -> Tensor:
    """(P, S) logits, (M, S) float targets -> (P, M), the same mean for every pair."""
    as_true, as_false = PIXEL_TERMS[kind](logits)
    return ((as_true - as_false) @ targets.T + as_false.sum(dim=1, keepdim=True)) / logits.shape[1]


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """(M, S), (M, S) -> (M,): 1 - (2 overlap + 1) / (area + area + 1) with soft predictions."""
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(dim=1)
    return 1 - (2 * overlap + 1) / (probability.sum(dim=1) + targets.sum(dim=1) + 1)


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """(P, S), (M, S) -> (P, M), the same for every pair."""
    probability = logits.sigmoid()
    overlap = probability @ targets.T
    return 1 - (2 * overlap + 1) / (probability.sum(dim=1, keepdim=True) + targets.sum(dim=1) + 1)
