"""Proposals from superpixels: small regions of one colour that keep to the edges of the photo.

SLIC: Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", PAMI 2012. The graph
method: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004. Both are
scikit-image's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostage.proposals._hierarchy import in_reading_order, masks_of, pixels
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest

METHODS = ("slic", "felzenszwalb")


@dataclass(frozen=True)
class SuperpixelsConfig:
    """method: "slic", about `count` regions of like size, or "felzenszwalb", as many as the photo has.

    count: of slic, what it starts from and comes near to; compactness: of slic, in levels of Lab colour;
    larger gives squares, smaller follows edges. scale: of felzenszwalb, larger gives larger regions;
    min_size: of felzenszwalb, pixels of the smallest region. sigma: blur before either, pixels.
    """

    method: Literal["slic", "felzenszwalb"] = "slic"
    count: int = 100
    compactness: float = 10.0
    scale: float = 100.0
    min_size: int = 50
    sigma: float = 0.8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ComponentError(
                f"SuperpixelsProposals: unknown method {self.method!r}.{nearest(self.method, METHODS)}"
            )
        if not self.count >= 1:
            raise ComponentError(f"SuperpixelsProposals: count must be at least 1, got {self.count}.")
        for option, above in (("compactness", True), ("scale", True), ("min_size", False), ("sigma", False)):
            value = getattr(self, option)
            if not (value > 0 if above else value >= 0):
                raise ComponentError(
                    f"SuperpixelsProposals: {option} must {'be above' if above else 'not be below'} 0, "
                    f"got {value}."
                )


class SuperpixelsProposals:
    """Bool masks that cover every pixel once, in reading order, all with the score 1. Text is ignored.

    Raises:
        ComponentError: scikit-image is not installed.
    """

    Config = SuperpixelsConfig

    def __init__(self, config: SuperpixelsConfig) -> None:
        if importlib.util.find_spec("skimage") is None:
            raise ComponentError(
                "SuperpixelsProposals needs the package scikit-image: pip install 'twostage[proposals]'."
            )
        self.config = config

    @classmethod
    def tiny(cls) -> SuperpixelsProposals:
        """A dozen regions."""
        return cls(cls.Config(count=12))

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) bool on the image's device."""
        made = []
        for image, rgb in zip(images, pixels(images, "SuperpixelsProposals"), strict=True):
            masks = torch.from_numpy(masks_of(in_reading_order(self._labels(rgb))))
            found = Proposals(masks, torch.ones(len(masks)), source="superpixels")
            made.append(found.to(image.device))
        return made

    def _labels(self, rgb: NDArray[np.uint8]) -> NDArray[Any]:
        """(H, W, 3) uint8 -> (H, W) region numbers."""
        from skimage.segmentation import felzenszwalb, slic

        config = self.config
        if config.method == "slic":
            count = min(config.count, rgb.shape[0] * rgb.shape[1])
            found = slic(
                rgb, n_segments=count, compactness=config.compactness, sigma=config.sigma, channel_axis=-1
            )
        else:
            found = felzenszwalb(rgb, scale=config.scale, sigma=config.sigma, min_size=config.min_size)
        return np.asarray(found)
