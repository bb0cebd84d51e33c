"""Which query answers for which true mask: the cheapest one-to-one assignment (Carion et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from twostage.errors import TwostageError
from twostage.maskformer.mask_losses import dice_cost, pixel_cost


class MatchError(TwostageError):
    """The costs of matching are not numbers: the network has diverged."""


@dataclass(frozen=True)
class Costs:
    """Factors of the three costs, and the kind of the pixel cost ("focal" or "bce")."""

    mask: float = 20.0
    dice: float = 1.0
    ce: float = 1.0
    kind: str = "focal"


Pairs = tuple[Tensor, Tensor]
"""Queries and true masks of one image that belong together: (P,) int64 each, on the CPU."""


@torch.no_grad()
def pair_costs(
    mask_logits: Tensor, class_probs: Tensor, masks: Tensor, classes: Tensor, costs: Costs
) -> Tensor:
    """Cost of every pair in one image, all decoder layers at once.

    mask_logits: (L, Q, h, w); class_probs: (L, Q, K + 1); masks: (M, h, w) float32; classes: (M,).
    Returns (L, Q, M) float32. All layers share one matrix product a term.
    """
    layers, queries = mask_logits.shape[:2]
    predicted = mask_logits.float().flatten(2).flatten(0, 1)
    wanted = masks.flatten(1)
    total = costs.mask * pixel_cost(predicted, wanted, costs.kind) + costs.dice * dice_cost(predicted, wanted)
    return total.view(layers, queries, -1) - costs.ce * class_probs[..., classes]


@torch.no_grad()
def match(
    mask_logits: Tensor,
    class_logits: Tensor,
    masks: Sequence[Tensor],
    classes: Sequence[Tensor],
    costs: Costs,
    image_ids: Sequence[str] = (),
) -> list[list[Pairs]]:
    """Match each decoder layer and image on its own.

    mask_logits: (L, B, Q, h, w); class_logits: (L, B, Q, K + 1); masks: B tensors (M_b, h, w) float32;
    classes: B tensors (M_b,) int64. The costs travel to the CPU in one piece.

    Returns pairs[layer][image]; an image without masks has none.

    Raises:
        MatchError: a cost is not finite; the message names the image and layer.
    """
    probabilities = class_logits.float().softmax(dim=-1)
    per_image = [
        pair_costs(mask_logits[:, b], probabilities[:, b], masks[b], classes[b], costs)
        for b in range(len(masks))
    ]
    table = torch.cat([cost.flatten() for cost in per_image]).cpu().numpy()
    found: list[list[Pairs]] = [[] for _ in mask_logits]
    start = 0
    for image, cost in enumerate(per_image):
        part = table[start : start + cost.numel()].reshape(cost.shape)
        start += cost.numel()
        _require_finite(part, image, image_ids)
        for layer, matrix in enumerate(part):
            rows, columns = linear_sum_assignment(matrix)
            found[layer].append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return found


def _require_finite(part: np.ndarray, image: int, image_ids: Sequence[str]) -> None:
    bad = ~np.isfinite(part)
    if bad.any():
        name = f"image {image_ids[image]!r}" if image_ids else f"image {image} of the batch"
        layer = int(np.argwhere(bad)[0][0])
        raise MatchError(
            f"Matching of {name}, decoder layer {layer}: {int(bad.sum())} of {bad.size} costs are not "
            "finite. The network has diverged: lower the learning rate, or train in float32."
        )
