"""MaskFormer (Cheng et al., 2021) whose class head speaks the language of text features (Xu et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twostage.maskformer.backbone import Backbone, build_backbone
from twostage.maskformer.config import MaskFormerConfig, MaskFormerError
from twostage.maskformer.heads import (
    LinearClassHead,
    Perceptron,
    TextClassHead,
    mask_logits,
    pixel_cosines,
    pool_under_masks,
)
from twostage.maskformer.inputs import padded_batch
from twostage.maskformer.pixel_decoder import PixelDecoder, fill_uniform
from twostage.maskformer.position import sine_positions
from twostage.maskformer.transformer import Memory, QueryDecoder
from twostage.types import TextBank


@dataclass(frozen=True)
class MaskFormerOutput:
    """What one forward pass gives: L decoder layers (the last one last), B images, Q queries.

    mask_logits: (L, B, Q, h, w) at the finest stride of the padded batch;
    embeddings: (L, B, Q, D), not normalised (D is the hidden width with the linear class head);
    mask_features: (B, C, h, w);
    pixel_embeddings: (B, D, h', w'), not normalised, or None without a pixel classifier;
    padded_hw: size in pixels that the batch was padded to.
    """

    mask_logits: Tensor
    embeddings: Tensor
    mask_features: Tensor
    pixel_embeddings: Tensor | None
    padded_hw: tuple[int, int]


class MaskFormer(nn.Module):
    """Images in, masks and embeddings out; words enter only through `class_logits`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.backbone = build_backbone(c)
        channels = cast(Backbone, self.backbone).channels
        self.pixel_decoder = PixelDecoder(channels, c.pixel_dim, c.mask_dim, c.mask_kernel)
        multi = c.memory == "multi"
        sources = [c.pixel_dim] * 3 if multi else [channels[-1]]
        self.memory_projections = nn.ModuleList(fill_uniform(nn.Conv2d(s, c.hidden_dim, 1)) for s in sources)
        self.level_embed = nn.Embedding(3, c.hidden_dim) if multi else None
        self.query_embed = nn.Embedding(c.num_queries, c.hidden_dim)
        self.decoder = QueryDecoder(c.hidden_dim, c.num_heads, c.feedforward_dim, c.dropout, c.decoder_layers)
        self.mask_embed = Perceptron((c.hidden_dim, c.hidden_dim, c.hidden_dim, c.mask_dim))
        self.class_head: TextClassHead | LinearClassHead
        if c.class_head == "linear":
            self.class_head = LinearClassHead(c.hidden_dim, c.num_classes)
        else:
            pooled = c.mask_dim if c.pooled_class else None
            self.class_head = TextClassHead(
                c.hidden_dim, c.class_hidden_dim, c.embedding_dim, c.no_object_std, pooled
            )
        self.pixel_classifier = nn.Conv2d(c.mask_dim, c.embedding_dim, 1) if c.pixel_classifier else None
        # Constants of the configuration: no checkpoint needs to carry them.
        self.register_buffer("mean", torch.tensor(c.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(c.std).view(3, 1, 1), persistent=False)

    def prepare(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """RGB, 0..255, uint8 or float -> (B, 3, H', W') float32, normalised, padded right and below by 0.

        images: (B, 3, H, W), or a sequence of (3, H, W) whose sizes may differ. H' and W' are the smallest
        multiples of config.size_divisibility that hold every image. No padding is masked, as in the paper.
        """
        return padded_batch(images, self.mean, self.std, self.config.size_divisibility)

    def forward(self, images: Tensor | Sequence[Tensor], last_only: bool = False) -> MaskFormerOutput:
        """images: as for `prepare`; last_only: masks of the last decoder layer alone (L = 1)."""
        return self.look(self.prepare(images), last_only)

    def look(self, pixels: Tensor, last_only: bool = False) -> MaskFormerOutput:
        """pixels: (B, 3, H', W'), what `prepare` gives; last_only: as for `forward`."""
        levels = self.backbone(pixels)
        mask_features, pyramid = self.pixel_decoder(levels)
        queries = self._decode(levels, pyramid, mask_features)
        if last_only:
            queries = queries[-1:]
        masks = mask_logits(self.mask_embed(queries), mask_features)
        pool = self.config.pixel_pool
        coarse = mask_features if pool == 1 else functional.avg_pool2d(mask_features, pool)
        pooled = pool_under_masks(masks, coarse) if self.config.pooled_class else None
        classifier = None if last_only else self.pixel_classifier
        return MaskFormerOutput(
            mask_logits=masks,
            embeddings=self.class_head(queries, pooled),
            mask_features=mask_features,
            pixel_embeddings=None if classifier is None else classifier(coarse),
            padded_hw=(pixels.shape[-2], pixels.shape[-1]),
        )

    def class_logits(self, embeddings: Tensor, text: TextBank | None = None) -> Tensor:
        """(..., D) embeddings of this network -> (..., K + 1) float32, "no object" last.

        With the text head: config.logit_scale x cosine with the K classes of `text` (best synonym) and with
        the learned "no object" vector; the bank's own scale and "no object" are not used.
        The linear head needs no text.

        Raises:
            MaskFormerError: text is missing, of another width, or of another class count than the head's.
        """
        if isinstance(self.class_head, LinearClassHead):
            if text is not None and text.num_classes != self.config.num_classes:
                raise MaskFormerError(
                    f"MaskFormer.class_logits: this network knows {self.config.num_classes} classes only, "
                    f"but {text.num_classes} were asked for. Use class_head 'text' for open vocabularies."
                )
            return self.class_head.logits(embeddings)
        bank = self._fitting(text)
        return self.class_head.logits(embeddings, bank, self.config.logit_scale)

    def pixel_logits(self, output: MaskFormerOutput, text: TextBank) -> Tensor:
        """(B, K, h', w') float32: config.logit_scale x cosine of every pixel embedding with every class.

        Raises:
            MaskFormerError: the network has no pixel classifier, or text is of another width.
        """
        if output.pixel_embeddings is None:
            raise MaskFormerError(
                "MaskFormer.pixel_logits: no pixel embeddings; build with pixel_classifier=True."
            )
        bank = self._fitting(text)
        return pixel_cosines(output.pixel_embeddings, bank, self.config.logit_scale)

    def _fitting(self, text: TextBank | None) -> TextBank:
        if text is None:
            raise MaskFormerError(
                "MaskFormer: the text class head needs a text bank to compare its embeddings with."
            )
        if text.dim != self.config.embedding_dim:
            raise MaskFormerError(
                f"MaskFormer: embedding_dim is {self.config.embedding_dim}, the text has {text.dim} columns. "
                "Set embedding_dim to the joint width of the CLIP model in use."
            )
        return text

    def _decode(self, levels: list[Tensor], pyramid: list[Tensor], mask_features: Tensor) -> Tensor:
        """Queries of every decoder layer, (L, B, Q, d)."""
        maps = pyramid[:0:-1] if self.config.memory == "multi" else levels[-1:]
        memories = [self._memory(index, features) for index, features in enumerate(maps)]
        if not self.config.masked_attention:
            return cast(Tensor, self.decoder(self.query_embed.weight, memories))
        # Mask logits are linear in the mask features: averaging those first gives averaged logits, cheaply.
        small = [
            functional.adaptive_avg_pool2d(mask_features.detach(), (m.shape[-2], m.shape[-1])).flatten(2)
            for m in maps
        ]

        def mask_at(queries: Tensor, index: int) -> Tensor:
            with torch.no_grad():
                return cast(Tensor, self.mask_embed(queries)) @ small[index]

        return cast(Tensor, self.decoder(self.query_embed.weight, memories, mask_at))

    def _memory(self, index: int, features: Tensor) -> Memory:
        height, width = features.shape[-2:]
        content = self.memory_projections[index](features).flatten(2).transpose(1, 2)
        if self.level_embed is not None:
            content = content + self.level_embed.weight[index]
        positions = sine_positions(height, width, self.config.hidden_dim, device=features.device)
        return Memory(content, positions.flatten(1).T)
