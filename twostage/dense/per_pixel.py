"""The trained per-pixel network as a dense head: what the paper's FCN baseline says of every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.fusion import strips
from twostage.ops.modes import evaluating
from twostage.perpixel.config import PerPixelConfig, PerPixelError
from twostage.perpixel.network import PerPixelNetwork, PixelEmbeddings
from twostage.types import DenseScores, PixelScores, TextBank
from twostage.vocabulary import nearest

ORDERS = ("grid", "paper")


class PerPixelDense:
    """Cosines with the words for every cell of the network's grid, one image at a time."""

    @dataclass(frozen=True)
    class Config:
        """order: "grid" normalises and compares at the network's own resolution and enlarges the K logits;
        "paper" enlarges the D components first, so the embeddings travel along and the ensemble does so strip
        by strip. Both agree in every cell's centre; in between, where neighbours point in unlike directions,
        the first weighs them alike and the second by their lengths.
        """

        order: Literal["grid", "paper"] = "grid"

        def __post_init__(self) -> None:
            if self.order not in ORDERS:
                raise TwostageError(
                    f"PerPixelDense: unknown order {self.order!r}.{nearest(self.order, ORDERS)}"
                )

    def __init__(self, config: Config, pixel_network: PerPixelNetwork) -> None:
        self.config = config
        self.network = pixel_network

    @classmethod
    def tiny(cls) -> PerPixelDense:
        """A small random network, the same each time."""
        config = PerPixelConfig(
            backbone="small", small_widths=(8, 8, 16, 16), pixel_dim=16, mask_dim=16, embedding_dim=8
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return cls(cls.Config(), PerPixelNetwork(config))

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> PixelScores each, on the network's device.

        Raises:
            PerPixelError: text is of another width, or the network says NaN.
        """
        with evaluating(self.network):
            return [self._one(image, text) for image in images]

    def _one(self, image: Tensor, text: TextBank) -> PixelScores:
        output = self.network(image[None])
        embeddings = output.embeddings[0]
        if not torch.isfinite(embeddings).all():
            raise PerPixelError(
                "The per-pixel network gives NaN or infinite numbers. The weights are damaged or come from a "
                "training that diverged: use an earlier checkpoint."
            )
        return PixelScores(
            self._logits(output, text.to(embeddings.device)),
            stride=output.stride,
            image_hw=(image.shape[1], image.shape[2]),
            embeddings=embeddings.float() if self.config.order == "paper" else None,
        )

    def _logits(self, output: PixelEmbeddings, text: TextBank) -> Tensor:
        """(K, h, w) float32, some rows at a time: with many words the steps in between would need several
        times the room.
        """
        depth, height, width = output.embeddings.shape[1:]
        logits = torch.empty(text.num_classes, height, width, device=output.embeddings.device)
        for first, last in strips(max(depth, text.num_classes), (height, width)):
            part = replace(output, embeddings=output.embeddings[:, :, first:last])
            logits[:, first:last] = self.network.logits(part, text)[0]
        return logits
