"""Proposals from a trained MaskFormer: one mask a query, with the network's own opinion of its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twostage.maskformer.config import MaskFormerConfig, MaskFormerError
from twostage.maskformer.network import MaskFormer
from twostage.ops.masks import MASKS_AT_ONCE, upsample_mask_logits
from twostage.ops.modes import evaluating
from twostage.types import Proposals, RegionScores, TextBank


@dataclass(frozen=True)
class MaskFormerProposalsConfig:
    """min_score: queries that score lower are dropped; 0 keeps every query, as in the paper; names_masks:
    whether the network speaks of classes too; not so, it gives masks alone, and its class head may belong
    to another CLIP than the one in use (MODEL.MASK_FORMER.EMBEDDING_DIM then says how wide it is).
    """

    min_score: float = 0.0
    names_masks: bool = True


class MaskFormerProposals:
    """Soft masks at the image's size, one image at a time so that no image sees another's padding.

    Where text is given, or the network has a linear head, logits are filled (unless names_masks is off) and
    scores are the largest class probability ("no object" takes part in the softmax). Otherwise scores are the
    mean probability inside the mask. Embeddings are of length one.
    """

    Config = MaskFormerProposalsConfig

    def __init__(self, config: MaskFormerProposalsConfig, network: MaskFormer) -> None:
        self.config = config
        self.names_masks = config.names_masks
        self.network = network

    @classmethod
    def tiny(cls) -> MaskFormerProposals:
        """A small random network, the same each time."""
        config = MaskFormerConfig(
            backbone="small",
            small_widths=(8, 8, 16, 16),
            pixel_dim=16,
            mask_dim=16,
            hidden_dim=16,
            num_queries=5,
            decoder_layers=2,
            num_heads=2,
            feedforward_dim=32,
            embedding_dim=8,
            class_hidden_dim=16,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls(cls.Config(), MaskFormer(config))

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (Q, H, W) float32 in [0, 1] on the network's device."""
        with evaluating(self.network):
            return [self._one(image, text) for image in images]

    def _one(self, image: Tensor, text: TextBank | None) -> Proposals:
        output = self.network(image[None], last_only=True)
        embeddings, raw = output.embeddings[-1, 0], None
        if self.names_masks and (text is not None or self.network.config.class_head == "linear"):
            raw = self.network.class_logits(embeddings, None if text is None else text.to(embeddings.device))
        seen = Queries(output.mask_logits[-1, 0], embeddings, raw, output.padded_hw)
        return to_proposals(seen, (image.shape[1], image.shape[2]), self.config.min_score)


@dataclass(frozen=True)
class Queries:
    """What the network says of one image: mask_logits (Q, h, w) of an input of padded_hw pixels, embeddings
    (Q, D), class_logits (Q, K + 1) with "no object" last, or None where no class was asked for.
    """

    mask_logits: Tensor
    embeddings: Tensor
    class_logits: Tensor | None
    padded_hw: tuple[int, int]


def to_proposals(seen: Queries, size_hw: tuple[int, int], min_score: float = 0.0) -> Proposals:
    """One proposal a query, of size_hw pixels, those that score lower than min_score dropped.

    Raises:
        MaskFormerError: the masks are not finite.
    """
    if not torch.isfinite(seen.mask_logits).all():
        raise MaskFormerError(
            "MaskFormer: the masks hold NaN or infinite numbers. The weights are damaged or come from a "
            "training that diverged: use an earlier checkpoint."
        )
    masks = upsample_mask_logits(seen.mask_logits, seen.padded_hw, size_hw)
    raw, logits = seen.class_logits, None
    if raw is not None:
        valid = torch.ones(len(raw), dtype=torch.bool, device=raw.device)
        logits = RegionScores(raw[:, :-1], valid, no_object=raw[:, -1])
        scores = logits.probs().amax(dim=1)
    else:
        scores = mean_inside(masks)
    unit = functional.normalize(seen.embeddings.float(), dim=-1)
    found = Proposals(masks, scores, unit, logits, source="maskformer")
    return found if min_score <= 0 else found[scores >= min_score]


def mean_inside(masks: Tensor) -> Tensor:
    """(Q, H, W) -> (Q,): mean probability over the pixels above one half; 0 where there are none."""
    means = [_mean_inside(few) for few in masks.split(MASKS_AT_ONCE)]
    return torch.cat(means) if means else masks.new_zeros(0)


def _mean_inside(masks: Tensor) -> Tensor:
    inside = masks > 0.5
    return (masks * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
