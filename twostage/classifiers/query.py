"""Masks named by what stage one itself makes of them: its embedding of each mask beside the text.

Costs nothing, for the embeddings are there already, but knows well only what stage one was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.classifiers._looks import check_pairs, unit
from twostage.errors import TwostageError
from twostage.ops.masks import binarise, mask_areas
from twostage.registry import ComponentError
from twostage.types import Proposals, RegionScores, TextBank


class QueryClassifier:
    """Names masks by stage one's own embeddings (Proposals.embeddings). The text features are those of stage
    two, so where prompts differ between the stages these are not the ones that stage one was trained with.

    Raises:
        ComponentError: the masks come without embeddings, or theirs are not as wide as the text's.
        TwostageError: an option has an unfit value, or masks and images do not fit together.
    """

    @dataclass(frozen=True)
    class Config:
        """mask_threshold: a soft mask holds the pixels strictly above it, and one that holds none is not
        valid; logit_factor: factor on the text bank's scale.
        """

        mask_threshold: float = 0.5
        logit_factor: float = 1.0

        def __post_init__(self) -> None:
            if not 0 <= self.mask_threshold < 1:
                raise TwostageError(
                    f"QueryClassifier: mask_threshold must lie in [0, 1), got {self.mask_threshold}."
                )
            if self.logit_factor <= 0:
                raise TwostageError(
                    f"QueryClassifier: logit_factor must be above 0, got {self.logit_factor}."
                )

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def tiny(cls) -> QueryClassifier:
        """The classifier as it is; it has no network."""
        return cls(cls.Config())

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """images: RGB uint8 (3, H, W), not looked at; proposals: masks of the same sizes with (N, D)
        embeddings -> class logits of each mask. Rows of empty masks are kept: valid is False there and the
        logits are 0.
        """
        check_pairs("QueryClassifier", images, proposals)
        return [self._one(position, found, text) for position, found in enumerate(proposals)]

    def _one(self, position: int, found: Proposals, text: TextBank) -> RegionScores:
        valid = mask_areas(binarise(found.masks, self.config.mask_threshold)) > 0
        if len(found) == 0:
            return RegionScores(torch.zeros(0, text.num_classes, device=valid.device), valid)
        source = found.source or "their source"
        if found.embeddings is None:
            raise ComponentError(
                f"QueryClassifier: the masks of image {position}, from {source}, have no embeddings to "
                "compare with text: take masks of a trained network (PROPOSALS.NAME maskformer), or name "
                "them another way (CLASSIFIER.NAME crops, pooled, masked_attention)."
            )
        if found.embeddings.shape[1] != text.dim:
            raise ComponentError(
                f"QueryClassifier: the embeddings of image {position}, from {source}, are "
                f"{found.embeddings.shape[1]} wide, the text features {text.dim}: use the CLIP that stage "
                "one was trained beside (CLIP.MODEL), or another CLASSIFIER.NAME."
            )
        bank = text.to(found.embeddings.device)
        logits = bank.logits(unit(found.embeddings)).to(valid.device) * self.config.logit_factor
        return RegionScores(logits * valid[:, None], valid)
