"""Dense conditional random field: labels that agree with their neighbours and with the edges of the photo.

Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011:
mean field with a Potts model and two Gaussian kernels, one of place, one of place and colour, each normalised
on both sides. As in their own later code a pixel's message includes its own share.

Shapes: C classes, H x W pixels, P = H * W pixels in reading order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.lattice import Lattice
from twostage.vocabulary import nearest

UNARIES = ("softmax", "shares")
Filter = Callable[[Tensor], Tensor]
"""(P, C) -> (P, C), a sum over all pixels with the weights of one kernel."""


@dataclass(frozen=True)
class DenseCrf:
    """iterations: steps of the mean field; sxy, compat: standard deviation, pixels, and strength of the
    smoothing by place alone; bilateral_sxy, bilateral_srgb, bilateral_compat: of that by place and colour
    (grey levels of 255); unary: how scores become probabilities, see `log_unary`; max_classes: classes that
    take part, the leading ones of the picture; time and memory grow with their number, not the vocabulary's.
    """

    iterations: int = 5
    sxy: float = 3.0
    compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    unary: Literal["softmax", "shares"] = "softmax"
    max_classes: int = 32

    def __post_init__(self) -> None:
        for name in ("sxy", "bilateral_sxy", "bilateral_srgb"):
            if not getattr(self, name) > 0:
                raise TwostageError(f"DenseCrf: {name} must be above 0, got {getattr(self, name)}.")
        for name in ("compat", "bilateral_compat"):
            if not getattr(self, name) >= 0:
                raise TwostageError(f"DenseCrf: {name} must be 0 or more, got {getattr(self, name)}.")
        if self.iterations < 1 or self.max_classes < 2:
            raise TwostageError(
                "DenseCrf: expected 1 or more iterations and 2 or more max_classes, got "
                f"{self.iterations} and {self.max_classes}."
            )
        if self.unary not in UNARIES:
            raise TwostageError(f"DenseCrf: unknown unary {self.unary!r}.{nearest(self.unary, UNARIES)}")

    def log_unary(self, scores: Tensor, chosen: Tensor) -> Tensor:
        """Class scores (K, ...) -> log probabilities of the chosen classes, up to a constant of each pixel,
        (C, ...) float32. chosen: (C,) int64.

        "softmax" takes the scores for logits (the paper: sums of probabilities times masks, which never lie
        far apart, so that the photo decides much); "shares" takes a class's part of the sum of all scores.
        """
        if self.unary == "softmax":
            return scores[chosen].float()
        total = scores.sum(dim=0, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return (scores[chosen] / total).clamp(min=1e-5).log()

    @torch.no_grad()
    def infer(self, photo: Tensor, log_unary: Tensor) -> Tensor:
        """Probabilities after the mean field, (P, C) float32.

        photo: RGB uint8 (3, H, W); log_unary: (P, C) float32, from `log_unary`. Memory: five arrays of the
        size of log_unary and the lattice of the photo, about 250 bytes a pixel.
        """
        kernels = [
            (self.compat, place_kernel((photo.shape[1], photo.shape[2]), self.sxy)),
            (self.bilateral_compat, photo_kernel(photo, self.bilateral_sxy, self.bilateral_srgb)),
        ]
        return mean_field(log_unary, kernels, self.iterations)


def mean_field(log_unary: Tensor, kernels: list[tuple[float, Filter]], iterations: int) -> Tensor:
    """log_unary: (P, C) float32; kernels: (strength, filter) -> (P, C) probabilities."""
    ones = torch.ones_like(log_unary[:, :1])
    norms = [kernel(ones).clamp_(min=1e-20).rsqrt_() for _, kernel in kernels]
    probs = log_unary.softmax(dim=1)
    for _ in range(iterations):
        logits = log_unary.clone()
        for (strength, kernel), norm in zip(kernels, norms, strict=True):
            if strength > 0:
                logits += kernel(probs * norm).mul_(norm).mul_(strength)
        probs = logits.softmax(dim=1)
    return probs


def place_kernel(size_hw: tuple[int, int], sigma: float) -> Filter:
    """exp(-|p_i - p_j|^2 / (2 sigma^2)) over pixel places, cut off at five sigma, down and then across."""
    down, across = (_bands(length, sigma) for length in size_hw)

    def apply(values: Tensor) -> Tensor:
        maps = values.view(*size_hw, -1)
        mixed = torch.empty_like(maps)
        for first, begin, band in down:
            reached = maps[begin : begin + band.shape[1]].flatten(1)
            mixed[first : first + len(band)] = (band.to(maps) @ reached).view(len(band), *maps.shape[1:])
        out = torch.empty_like(maps)
        for first, begin, band in across:
            out[:, first : first + len(band)] = band.to(maps) @ mixed[:, begin : begin + band.shape[1]]
        return out.view_as(values)

    return apply


def _bands(length: int, sigma: float, block: int = 64) -> list[tuple[int, int, Tensor]]:
    """The banded matrix of a Gaussian in blocks of rows: (first row, first column, (rows, columns) float32).
    Products with small dense matrices are several times faster on processors than a convolution.
    """
    reach, places = math.ceil(5 * sigma), torch.arange(length)
    found = []
    for first in range(0, length, block):
        begin = max(0, first - reach)
        apart = places[first : first + block, None] - places[None, begin : first + block + reach]
        found.append(
            (first, begin, torch.exp(-0.5 * (apart / sigma) ** 2).masked_fill_(apart.abs() > reach, 0))
        )
    return found


def photo_kernel(photo: Tensor, sxy: float, srgb: float) -> Filter:
    """exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2)), on the permutohedral lattice.

    photo: RGB uint8 (3, H, W).
    """
    height, width = photo.shape[1:]
    rows = torch.arange(height, device=photo.device).float()[:, None].expand(height, width) / sxy
    columns = torch.arange(width, device=photo.device).float()[None].expand(height, width) / sxy
    features = torch.stack([rows, columns, *(photo.float() / srgb)], dim=2)
    return Lattice(features.reshape(-1, 5)).filter
