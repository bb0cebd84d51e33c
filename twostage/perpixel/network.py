"""The FCN of the paper's ablation (Xu et al., 2022): a feature pyramid that ends in CLIP's joint space.

Backbone, pyramid and cosines are MaskFormer's own; only queries and masks are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from twostage.maskformer.backbone import Backbone, build_backbone
from twostage.maskformer.criterion import pixel_cross_entropy
from twostage.maskformer.heads import pixel_cosines
from twostage.maskformer.inputs import padded_batch
from twostage.maskformer.pixel_decoder import PixelDecoder
from twostage.perpixel.config import PerPixelConfig, PerPixelError
from twostage.types import TextBank


@dataclass(frozen=True)
class PixelEmbeddings:
    """embeddings: (B, D, h, w), not normalised, one for each cell of `stride` pixels, from the top left on;
    the last row and column may reach beyond the batch. input_hw: size in pixels of the (padded) batch.
    """

    embeddings: Tensor
    input_hw: tuple[int, int]
    stride: int

    def enlarged(self, maps: Tensor) -> Tensor:
        """(B, C, h, w) maps on this grid -> (B, C, H, W) at the batch's pixels, bilinear."""
        size = (maps.shape[-2] * self.stride, maps.shape[-1] * self.stride)
        full = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return full[..., : self.input_hw[0], : self.input_hw[1]]


class PerPixelNetwork(nn.Module):
    """Images in, one embedding a cell out; words enter only through `logits`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PerPixelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        backbone = cast(Backbone, self.backbone)
        self.stride = backbone.strides[0]
        self.pixel_decoder = PixelDecoder(
            backbone.channels, config.pixel_dim, config.mask_dim, config.mask_kernel
        )
        self.predictor = nn.Conv2d(config.mask_dim, config.embedding_dim, 1)
        nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        assert self.predictor.bias is not None
        nn.init.zeros_(self.predictor.bias)
        # Constants of the configuration: no checkpoint needs to carry them.
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor | Sequence[Tensor]) -> PixelEmbeddings:
        """images: RGB, 0..255, uint8 or float; (B, 3, H, W), or a sequence of (3, H, W)."""
        pixels = padded_batch(images, self.mean, self.std, self.config.size_divisibility)
        features, _ = self.pixel_decoder(self.backbone(pixels))
        embeddings = self.predictor(features)
        return PixelEmbeddings(embeddings, (pixels.shape[-2], pixels.shape[-1]), self.stride)

    def logits(self, output: PixelEmbeddings, text: TextBank) -> Tensor:
        """(B, K, h, w) float32: config.logit_scale x cosine of every cell with every class (best synonym).

        Raises:
            PerPixelError: text is of another width than the embeddings.
        """
        if text.dim != self.config.embedding_dim:
            raise PerPixelError(
                f"PerPixelNetwork: embedding_dim is {self.config.embedding_dim}, the text has {text.dim} "
                "columns. Set embedding_dim to the joint width of the CLIP model in use."
            )
        return pixel_cosines(output.embeddings, text, self.config.logit_scale)

    def loss(self, output: PixelEmbeddings, text: TextBank, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled pixels: cosines per cell, enlarged, against (B, H, W) labels.

        labels: int64, row of `text`'s classes, -1 ignored. Without any labelled pixel the loss is 0.

        Raises:
            PerPixelError: a label is outside the classes, or text does not fit.
        """
        if labels.numel() and int(labels.max()) >= text.num_classes:
            raise PerPixelError(
                f"PerPixelNetwork: label {int(labels.max())} among {text.num_classes} classes. "
                "Train with the text features of the data set's own vocabulary."
            )
        full = output.enlarged(self.logits(output, text))
        return pixel_cross_entropy(full, labels, output.input_hw)
