"""The training losses: class, mask and dice terms of every decoder layer, each matched anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

from twostage.maskformer.config import MaskFormerError, require_choice
from twostage.maskformer.mask_losses import PIXEL_TERMS, dice_loss, pixel_loss
from twostage.maskformer.matcher import Costs, Pairs, match
from twostage.maskformer.network import MaskFormerOutput
from twostage.maskformer.targets import Targets, padded_masks, shrink

RESOLUTIONS = ("input", "logits")


@dataclass(frozen=True)
class LossConfig:
    """Factors of the losses, which are also those of the matching costs; the defaults are the paper's.

    ce, mask, dice: factors of the class, pixel and dice terms.
    no_object: weight of "no object" in the class term; 0 or less leaves unmatched queries out.
    mask_kind: "focal" (paper) or "bce".
    resolution: "input" enlarges the predicted masks to the image (paper); "logits" shrinks the true ones
        instead, at a fraction of the cost.
    match_pool: matching sees masks averaged over squares of this side; 1 is the paper's.
    pixel: factor of the auxiliary pixel loss, where the network has a pixel classifier.
    """

    ce: float = 1.0
    mask: float = 20.0
    dice: float = 1.0
    no_object: float = 0.1
    mask_kind: str = "focal"
    resolution: str = "input"
    match_pool: int = 1
    pixel: float = 1.0

    def __post_init__(self) -> None:
        require_choice("LossConfig.mask_kind", self.mask_kind, tuple(PIXEL_TERMS))
        require_choice("LossConfig.resolution", self.resolution, RESOLUTIONS)


class Criterion:
    """Named, weighted losses of one batch; the engine only adds them up."""

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(
        self,
        output: MaskFormerOutput,
        class_logits: Tensor,
        targets: Targets,
        pixel_logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses loss_ce, loss_mask, loss_dice of the last layer; of the earlier ones with suffix _0, _1, ...

        class_logits: (L, B, Q, K + 1) of output.embeddings; pixel_logits: (B, K, h', w'), adds loss_pixel.

        Raises:
            MaskFormerError: a class index is outside the vocabulary.
            MatchError: a matching cost is not finite.
        """
        device = output.mask_logits.device
        classes = [found.to(device) for found in targets.classes]
        _require_known(classes, class_logits.shape[-1] - 1, targets.image_ids)
        full = padded_masks(targets, output.padded_hw, device)
        pairs = self._match(output.mask_logits, class_logits, full, classes, targets.image_ids)
        count = mask_count(sum(len(masks) for masks in full), device)
        wanted = full
        if self.config.resolution == "logits":
            wanted = [
                shrink(masks, (output.mask_logits.shape[-2], output.mask_logits.shape[-1])) for masks in full
            ]
        chosen = matched_logits(output.mask_logits, pairs)
        losses: dict[str, Tensor] = {}
        last = len(pairs) - 1
        for layer in (last, *range(last)):
            suffix = "" if layer == last else f"_{layer}"
            losses["loss_ce" + suffix] = self._ce(class_logits[layer], pairs[layer], classes)
            mask, dice = self._masks(chosen[layer], pairs[layer], wanted, count)
            losses["loss_mask" + suffix], losses["loss_dice" + suffix] = mask, dice
        if pixel_logits is not None:
            losses["loss_pixel"] = self.config.pixel * pixel_cross_entropy(
                pixel_logits, targets.labels.to(device), output.padded_hw
            )
        return losses

    @torch.no_grad()
    def _match(
        self,
        mask_logits: Tensor,
        class_logits: Tensor,
        masks: Sequence[Tensor],
        classes: Sequence[Tensor],
        image_ids: Sequence[str],
    ) -> list[list[Pairs]]:
        c = self.config
        if c.match_pool > 1:
            pooled = functional.avg_pool2d(mask_logits.flatten(0, 1), c.match_pool, ceil_mode=True)
            mask_logits = pooled.unflatten(0, mask_logits.shape[:2])
        small = [shrink(found, (mask_logits.shape[-2], mask_logits.shape[-1])) for found in masks]
        costs = Costs(mask=c.mask, dice=c.dice, ce=c.ce, kind=c.mask_kind)
        return match(mask_logits, class_logits, small, classes, costs, image_ids)

    def _ce(self, logits: Tensor, pairs: list[Pairs], classes: Sequence[Tensor]) -> Tensor:
        """Cross-entropy over all queries, (B, Q, K + 1); unmatched ones should say "no object"."""
        nothing = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:2], nothing, dtype=torch.long, device=logits.device)
        for row, (queries, masks), found in zip(wanted, pairs, classes, strict=True):
            row[queries.to(row.device)] = found[masks.to(row.device)]
        weight = torch.ones(nothing + 1, device=logits.device)
        if self.config.no_object > 0:
            weight[nothing] = self.config.no_object
        elif bool((wanted == nothing).all()):
            return logits.sum() * 0.0  # nothing is left to average over
        else:
            wanted = wanted.masked_fill(wanted == nothing, -1)
        return self.config.ce * functional.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten(), weight, ignore_index=-1
        )

    def _masks(
        self, chosen: Tensor, pairs: list[Pairs], wanted: Sequence[Tensor], count: float
    ) -> tuple[Tensor, Tensor]:
        """Pixel and dice losses of one layer's matched masks, summed and divided by `count`."""
        if not len(chosen):
            nothing = chosen.sum()  # zero, and keeps every parameter in the graph
            return nothing, nothing
        truth = torch.cat([masks[m.to(masks.device)] for masks, (_, m) in zip(wanted, pairs, strict=True)])
        chosen = chosen.float()
        if truth.shape[-2:] != chosen.shape[-2:]:
            chosen = functional.interpolate(
                chosen[:, None], size=truth.shape[-2:], mode="bilinear", align_corners=False
            )[:, 0]
        flat, truth = chosen.flatten(1), truth.flatten(1)
        mask = pixel_loss(flat, truth, self.config.mask_kind).sum() / count
        dice = dice_loss(flat, truth).sum() / count
        return self.config.mask * mask, self.config.dice * dice


def matched_logits(mask_logits: Tensor, pairs: Sequence[Sequence[Pairs]]) -> list[Tensor]:
    """(L, B, Q, h, w) -> for each layer (P, h, w), the masks of matched queries, images in order.

    One gather for all layers, so that the backward pass writes the full gradient only once.
    """
    _, batch, queries = mask_logits.shape[:3]
    rows = [
        (layer * batch + image) * queries + found
        for layer, of_layer in enumerate(pairs)
        for image, (found, _) in enumerate(of_layer)
    ]
    counts = [sum(len(found) for found, _ in of_layer) for of_layer in pairs]
    picked = mask_logits.flatten(0, 2)[torch.cat(rows).to(mask_logits.device)]
    return list(picked.split(counts))


def mask_count(count: int, device: torch.device) -> float:
    """True masks a process, averaged over all processes, at least 1: what the mask losses are divided by."""
    if distributed.is_available() and distributed.is_initialized():
        total = torch.tensor(float(count), device=device)
        distributed.all_reduce(total)
        return max(1.0, float(total) / distributed.get_world_size())
    return max(1.0, float(count))


def pixel_cross_entropy(logits: Tensor, labels: Tensor, padded_hw: tuple[int, int]) -> Tensor:
    """Mean cross-entropy of (B, K, h, w) logits with the nearest of (B, H, W) labels; -1 is ignored."""
    height, width = padded_hw
    border = (0, width - labels.shape[-1], 0, height - labels.shape[-2])
    padded = functional.pad(labels, border, value=-1)[:, None].float()
    wanted = functional.interpolate(padded, size=logits.shape[-2:], mode="nearest")[:, 0].long()
    if not bool((wanted >= 0).any()):
        return logits.sum() * 0.0
    return functional.cross_entropy(logits, wanted.clamp(min=-1), ignore_index=-1)


def _require_known(classes: Sequence[Tensor], count: int, image_ids: Sequence[str]) -> None:
    for found, name in zip(classes, image_ids, strict=True):
        if len(found) and (int(found.min()) < 0 or int(found.max()) >= count):
            raise MaskFormerError(
                f"Criterion: image {name!r} has classes {found.tolist()}, expected 0..{count - 1}. "
                "Train with the text features of the data set's own vocabulary."
            )
