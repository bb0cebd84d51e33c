"""Proposals from contours: watershed regions, merged across their weakest common border first.

In the spirit of gPb-OWT-UCM (Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation", PAMI
2011): a boundary strength from brightness, colour and texture at several scales, regions of its watershed,
and an ultrametric contour map whose level sets are nested partitions. The learned weights and the spectral
step of gPb are left out, so this is a weaker detector than theirs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from twostage.proposals._hierarchy import (
    Borders,
    Floats,
    Hierarchy,
    Integers,
    borders,
    in_reading_order,
    masks_of,
    merge_greedily,
    pixels,
)
from twostage.registry import ComponentError
from twostage.types import Proposals, TextBank


@dataclass(frozen=True)
class ContoursConfig:
    """levels: boundary strengths in [0, 1], where 1 is the step from black to white; each level gives the
    partition whose borders are all stronger, and several levels give the regions of all of them, each
    once; scales: widths of the edge filters, pixels; texture: share of texture in the strength; min_area:
    regions below this many pixels are merged over their weakest border, whatever its strength; max_masks:
    the regions with the strongest outline; 0 keeps all (always so for a single level, which has to stay a
    partition).
    """

    levels: tuple[float, ...] = (0.2,)
    scales: tuple[float, ...] = (1.0, 2.0)
    texture: float = 1.0
    min_area: int = 50
    max_masks: int = 0

    def __post_init__(self) -> None:
        if not self.levels or not all(0 <= level <= 1 for level in self.levels):
            raise ComponentError(
                f"ContoursProposals: levels must be one or more numbers in [0, 1], got {self.levels}."
            )
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise ComponentError(
                f"ContoursProposals: scales must be one or more widths above 0, got {self.scales}."
            )
        for option in ("texture", "min_area", "max_masks"):
            if not getattr(self, option) >= 0:
                raise ComponentError(
                    f"ContoursProposals: {option} must not be negative, got {getattr(self, option)}."
                )


class ContoursProposals:
    """Bool masks. One level: every pixel lies in exactly one, in reading order; several: nested regions,
    strongest outline first. A score is the strength at which the region dissolves into a neighbour, 1 for
    the whole photo. Text is ignored.

    Raises:
        ComponentError: scikit-image is not installed.
    """

    Config = ContoursConfig

    def __init__(self, config: ContoursConfig) -> None:
        if importlib.util.find_spec("skimage") is None:
            raise ComponentError(
                "ContoursProposals needs the package scikit-image: pip install 'twostage[proposals]'."
            )
        self.config = config

    @classmethod
    def tiny(cls) -> ContoursProposals:
        """Three nested levels."""
        return cls(cls.Config(levels=(0.1, 0.2, 0.4), min_area=8))

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (N, H, W) bool on the image's device."""
        made = []
        for image, rgb in zip(images, pixels(images, "ContoursProposals"), strict=True):
            masks, scores = self._regions(rgb)
            found = Proposals(torch.from_numpy(masks), torch.from_numpy(scores), source="contours")
            made.append(found.to(image.device))
        return made

    def _regions(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """(N, H, W) bool and (N,) float32."""
        start, tree = self.hierarchy(rgb)
        dissolves = np.ones(tree.count + len(tree.merges))
        dissolves[tree.merges] = tree.heights[:, None]
        if len(self.config.levels) == 1:
            roots = tree.at(self.config.levels[0])
            labels = in_reading_order(roots[start])
            first = np.unique(labels, return_index=True)[1]
            return masks_of(labels), dissolves[roots[start.ravel()[first]]].astype(np.float32)
        chosen = np.unique(np.concatenate([tree.at(level) for level in self.config.levels]))
        order = np.argsort(-dissolves[chosen], kind="stable")
        chosen = chosen[order][: self.config.max_masks or None]
        masks = np.zeros((len(chosen), *start.shape), dtype=bool)
        for level in self.config.levels:
            roots = tree.at(level)[start]
            for row, region in enumerate(chosen):
                masks[row] |= roots == region
        return masks, dissolves[chosen].astype(np.float32)

    def hierarchy(self, rgb: NDArray[np.uint8]) -> tuple[Integers, Hierarchy]:
        """(H, W, 3) uint8 -> (H, W) first regions of 0..R-1, and how they merge into the whole photo."""
        strength = boundary_strength(rgb, self.config.scales, self.config.texture)
        start = _watershed(strength)
        found = borders(start, strength)
        sizes = np.bincount(start.ravel())
        merger = _Merger(found, sizes, self.config.min_area)
        costs = merger.costs(found.pairs[:, 0], found.pairs[:, 1], found.total / found.length)
        tree = merge_greedily(len(sizes), found.pairs, costs, np.inf, merger.rescore)
        # What is too small merges first, at costs below 0: no level shows it.
        return start, Hierarchy(tree.count, tree.merges, np.maximum(tree.costs, 0))


def boundary_strength(
    rgb: NDArray[np.uint8], scales: Sequence[float] = (1.0, 2.0), texture: float = 1.0
) -> Floats:
    """(H, W) in [0, 1]: the height of the step at each pixel, in units of black to white.

    Brightness and colour are CIELAB's channels, whose distances follow the eye; texture is the contrast
    around a pixel. Of each the gradient's length, times sqrt(2 pi) x scale, which turns the peak of a
    blurred step into the step's own height; the mean over the scales.
    """
    from skimage.color import rgb2lab

    lab = rgb2lab(rgb)
    rough = ndimage.gaussian_filter(lab[:, :, 0], 2.0)
    contrast = ndimage.gaussian_filter(np.abs(lab[:, :, 0] - rough), 2.0)
    channels = [*np.moveaxis(lab, 2, 0), texture * contrast]
    total = np.zeros(lab.shape[:2])
    for scale in scales:
        squares = sum(ndimage.gaussian_gradient_magnitude(channel, scale) ** 2 for channel in channels)
        total += np.sqrt(2 * np.pi) * scale * np.sqrt(squares)
    return np.asarray(np.minimum(total / len(scales) / 100, 1.0), dtype=np.float64)


def _watershed(strength: Floats) -> Integers:
    """Basins of the strength, one a local minimum: (H, W) of 0..R-1.

    Smoothed by a pixel, which leaves a fifth of the basins of a noisy photo, and rounded, so that noise of
    the last bits makes none.
    """
    from skimage.segmentation import watershed

    smooth = ndimage.gaussian_filter(strength, 1.0)
    return in_reading_order(watershed(np.rint(smooth * 1000).astype(np.int32)))


class _Merger:
    """Mean strength of every common border, weighted by its length, as regions merge."""

    def __init__(self, found: Borders, sizes: Integers, min_area: int) -> None:
        self._min_area = min_area
        self._size = [*sizes.tolist(), *[0] * (len(sizes) - 1)]
        self._edges: list[dict[int, tuple[float, float]]] = [{} for _ in self._size]
        for (first, second), total, length in zip(
            found.pairs.tolist(), found.total.tolist(), found.length.tolist(), strict=True
        ):
            self._edges[first][second] = self._edges[second][first] = (total, length)

    def costs(self, first: Integers, second: Integers, mean: Floats) -> Floats:
        """The mean strength, shifted below 0 where a region is too small, so that it goes first."""
        size = np.asarray(self._size)
        least = np.minimum(size[first], size[second])
        return np.where(least < self._min_area, mean - 2.0, mean)

    def rescore(self, first: int, second: int, merged: int, around: Integers) -> Floats:
        """Join the borders of both regions; the costs of the new pairs."""
        self._size[merged] = self._size[first] + self._size[second]
        one, other, own = self._edges[first], self._edges[second], self._edges[merged]
        means = []
        for neighbour in around.tolist():
            total, length = (
                a + b for a, b in zip(one.get(neighbour, (0, 0)), other.get(neighbour, (0, 0)), strict=True)
            )
            own[neighbour] = self._edges[neighbour][merged] = (total, length)
            self._edges[neighbour].pop(first, None)
            self._edges[neighbour].pop(second, None)
            means.append(total / length - 2.0 * self._small(merged, neighbour))
        one.clear()
        other.clear()
        return np.asarray(means, dtype=np.float64)

    def _small(self, first: int, second: int) -> bool:
        return bool(min(self._size[first], self._size[second]) < self._min_area)
