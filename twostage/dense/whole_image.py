"""One opinion of the whole image for every pixel: image classification by CLIP.

The code that accompanies "A Simple Baseline for Open-Vocabulary Semantic Segmentation" (Xu et al., ECCV 2022)
combines its per-pixel baseline with this instead of the map of patches that the text describes. It is here
for comparison; a dense head such as readout is what the text means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.errors import TwostageError
from twostage.types import DenseScores, TextBank


class WholeImageDense:
    """CLIP's class logits of the image, as a map of a single place."""

    @dataclass(frozen=True)
    class Config:
        """own_size: squash the image to the tower's own square size; otherwise the tower sees it as it is,
        with an interpolated position table (as the released code does).
        """

        own_size: bool = False

    def __init__(self, config: Config, clip: ClipModel) -> None:
        self.config = config
        self.clip = clip

    @classmethod
    def tiny(cls) -> WholeImageDense:
        """The smallest shipped ViT with random weights."""
        return cls(cls.Config(), ClipModel.load("twostage-mini-vit", "random", seed=0))

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> (K, 1, 1) logits each, on the image's device.

        Raises:
            TwostageError: the text has another width than the image features.
            ClipError: an image is smaller than one cell of the tower.
        """
        if text.dim != self.clip.dim:
            raise TwostageError(
                f"WholeImageDense: expected text features {self.clip.dim} wide, got {text.dim}."
                f" Make them with the text tower of {self.clip.name}, which reads the image."
            )
        text = text.to(self.clip.device)
        return [self._one(image, text) for image in images]

    def _one(self, image: Tensor, text: TextBank) -> DenseScores:
        size = self.clip.image_size if self.config.own_size else (image.shape[1], image.shape[2])
        pixels = _frame.to_pixels(image.to(self.clip.device), size, self.clip.mean, self.clip.std)
        [logits] = text.logits(self.clip.encode_images(pixels[None]))
        return DenseScores(logits[:, None, None].to(image.device))
