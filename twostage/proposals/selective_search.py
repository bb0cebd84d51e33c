"""Proposals by selective search: small segments, merged with the neighbour most like them.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, with one start segmentation
(Felzenszwalb and Huttenlocher, IJCV 2004) and one colour space. Merging stops where neighbours differ, so
that what is left is a partition of the photo: the classical rival of learned masks in Xu et al., ECCV 2022.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from twostage.proposals._hierarchy import (
    Floats,
    Integers,
    borders,
    in_reading_order,
    masks_of,
    merge_greedily,
    pixels,
)
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank

POINTS, RADIUS = 24, 3
"""Of the local binary patterns: sampled neighbours, and their distance in pixels."""


@dataclass(frozen=True)
class SelectiveSearchConfig:
    """scale: of the start segments, in levels of 0..255; larger gives larger ones; sigma: blur before it,
    pixels; min_size: smallest start segment, pixels; min_share: the same as a share of the photo, whichever
    of the two is less, so that small photos keep segments (1: min_size alone counts); similarity: neighbours
    at least this alike are merged, in [0, 1]; color_bins, texture_bins: of the histograms, a channel.
    """

    scale: float = 20.0
    sigma: float = 0.8
    min_size: int = 1000
    min_share: float = 1.0
    similarity: float = 0.65
    color_bins: int = 25
    texture_bins: int = 80

    def __post_init__(self) -> None:
        for option, least, most in (
            ("scale", 0, np.inf),
            ("sigma", 0, np.inf),
            ("min_size", 0, np.inf),
            ("min_share", 0, 1),
            ("similarity", 0, 1),
            ("color_bins", 1, 256),
            ("texture_bins", 1, 2**16),
        ):
            if not least <= getattr(self, option) <= most:
                raise ComponentError(
                    f"SelectiveSearchProposals: {option} must lie in [{least}, {most}], got "
                    f"{getattr(self, option)}."
                )


class SelectiveSearchProposals:
    """Bool masks that cover every pixel once, in reading order, all with the score 1. Text is ignored.

    Raises:
        ComponentError: scikit-image is not installed.
    """

    Config = SelectiveSearchConfig

    def __init__(self, config: SelectiveSearchConfig) -> None:
        if importlib.util.find_spec("skimage") is None:
            raise ComponentError(
                "SelectiveSearchProposals needs the package scikit-image: pip install 'twostage[proposals]'."
            )
        self.config = config

    @classmethod
    def tiny(cls) -> SelectiveSearchProposals:
        """For pictures of a few dozen pixels."""
        return cls(cls.Config(min_size=20))

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) bool on the image's device."""
        made = []
        for image, rgb in zip(images, pixels(images, "SelectiveSearchProposals"), strict=True):
            masks = torch.from_numpy(masks_of(self.partition(rgb)))
            found = Proposals(masks, torch.ones(len(masks)), source="selective_search")
            made.append(found.to(image.device))
        return made

    def partition(self, rgb: NDArray[np.uint8]) -> Integers:
        """(H, W, 3) uint8 -> (H, W) region numbers from 0, by their first pixel in reading order."""
        hsv = _hsv(rgb)
        start = self._segments(hsv)
        regions = _Regions(start, hsv, self.config)
        pairs = borders(start).pairs
        costs = -regions.similarity(pairs[:, 0], pairs[:, 1])
        tree = merge_greedily(regions.count, pairs, costs, -self.config.similarity, regions.rescore)
        return in_reading_order(tree.roots()[start])

    def _segments(self, hsv: NDArray[np.uint8]) -> Integers:
        """The start segmentation, (H, W) of 0..R-1."""
        from skimage.segmentation import felzenszwalb

        config = self.config
        least = min(config.min_size, round(config.min_share * hsv.shape[0] * hsv.shape[1]))
        # Given bytes, scikit-image works in 0..1 and divides the scale by 255: the authors' 0..255 levels.
        found = felzenszwalb(hsv, scale=config.scale, sigma=config.sigma, min_size=least)
        return in_reading_order(found)


class _Regions:
    """What is known of each region; the rows after the first R are filled as regions are merged.

    size: pixels; box: y0, x0, y1, x1, end-exclusive; color, texture: histograms of sum one.
    """

    def __init__(self, start: Integers, hsv: NDArray[np.uint8], config: SelectiveSearchConfig) -> None:
        self.count = int(start.max()) + 1
        self.area = start.size
        rows = 2 * self.count - 1
        self.size = np.zeros(rows)
        self.size[: self.count] = np.bincount(start.ravel(), minlength=self.count)
        self.box = np.zeros((rows, 4))
        slices = ndimage.find_objects(start + 1)
        self.box[: self.count] = [(y.start, x.start, y.stop, x.stop) for y, x in slices]
        color = hsv.astype(np.int64) * config.color_bins // 256
        texture = _patterns(hsv) * config.texture_bins // 2**POINTS
        self.color = self._histograms(start, color, config.color_bins, rows)
        self.texture = self._histograms(start, texture, config.texture_bins, rows)

    def _histograms(self, start: Integers, bins: Integers, per_channel: int, rows: int) -> Floats:
        """(rows, channels x bins): of all channels together, L1-normalised."""
        channels = bins.shape[2]
        width = channels * per_channel
        column = bins + np.arange(channels) * per_channel
        flat = (start[:, :, None] * width + column).ravel()
        counts = np.bincount(flat, minlength=self.count * width).reshape(self.count, width)
        made = np.zeros((rows, width))
        made[: self.count] = counts / counts.sum(axis=1, keepdims=True)
        return made

    def similarity(self, first: Any, second: Any) -> Floats:
        """The mean of likeness in size, colour, texture and fill, each in [0, 1]; first, second: indices."""
        both = self.size[first] + self.size[second]
        low = np.minimum(self.box[first], self.box[second])[..., :2]
        high = np.maximum(self.box[first], self.box[second])[..., 2:]
        around = (high - low).prod(axis=-1)
        color = np.minimum(self.color[first], self.color[second]).sum(axis=-1)
        texture = np.minimum(self.texture[first], self.texture[second]).sum(axis=-1)
        size = 1 - both / self.area
        fill = 1 - (around - both) / self.area
        return np.asarray((size + color + texture + fill) / 4, dtype=np.float64)

    def rescore(self, first: int, second: int, merged: int, around: Integers) -> Floats:
        """Fill the row of a merged region; the costs of its pairs."""
        one, other = self.size[first], self.size[second]
        self.size[merged] = one + other
        self.box[merged, :2] = np.minimum(self.box[first], self.box[second])[:2]
        self.box[merged, 2:] = np.maximum(self.box[first], self.box[second])[2:]
        for table in (self.color, self.texture):
            table[merged] = (one * table[first] + other * table[second]) / (one + other)
        return -self.similarity(np.full(len(around), merged), around)


def _hsv(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Hue, saturation, value, (H, W, 3), each 0..255."""
    from skimage.color import rgb2hsv

    hsv: NDArray[np.uint8] = np.rint(rgb2hsv(rgb) * 255).astype(np.uint8)
    return hsv


def _patterns(hsv: NDArray[np.uint8]) -> Integers:
    """Local binary patterns of each channel, (H, W, 3) codes below 2 ** POINTS (Ojala et al., 2002)."""
    from skimage.feature import local_binary_pattern

    channels = [local_binary_pattern(hsv[:, :, channel], POINTS, RADIUS) for channel in range(hsv.shape[2])]
    return np.stack(channels, axis=2).astype(np.int64)
