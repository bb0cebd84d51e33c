"""Which patches of a grid belong together by their labels: the map that ResCLIP feeds back.

Yang et al., "ResCLIP: Residual Attention for Training-free Dense Vision-language Inference", CVPR 2025, in
the form of the released code.

Shapes: B images, H x W pixels, h x w grid, N = h * w patches in reading order.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError

SIGMA, REACH = 5.0, 15
"""Standard deviation and reach, in patches, of the smoothing along a row of the map: 31 taps."""


def cell_modes(labels: Tensor, cell_hw: tuple[int, int]) -> Tensor:
    """(B, H, W) int64 labels -> (B, h, w), the most frequent label of every cell, the smallest of several.

    Raises:
        TwostageError: the labels do not divide into whole cells.
    """
    tall, wide = cell_hw
    if labels.shape[1] % tall or labels.shape[2] % wide:
        raise TwostageError(
            f"cell_modes: labels of {tuple(labels.shape[1:])} pixels do not divide into cells of {cell_hw}: "
            "pad or resize the image to whole cells."
        )
    height, width = labels.shape[1] // tall, labels.shape[2] // wide
    cells = labels.reshape(len(labels), height, tall, width, wide).transpose(2, 3)
    return cells.flatten(3).mode(dim=-1).values


def same_label_map(labels: Tensor) -> Tensor:
    """(B, h, w) integer labels -> (B, N, N) float32, how much patch i belongs to patch j; rows sum to one.

    1 for patches of one label, 0 for others; exp(-steps / most) where the straight way between them meets
    another label (`reached`), steps being the larger of their distances down and across, and most the
    largest of the grid. Every row is then smoothed with a Gaussian over the patches in reading order, zeros
    beyond the ends, so that the ends of a row of patches run into the next one's, as released.
    """
    steps = _steps((labels.shape[1], labels.shape[2])).to(labels.device)
    flat = labels.flatten(1)
    same = (flat[:, :, None] == flat[:, None, :]).float()
    damped = torch.exp(-steps / steps.max().clamp_min(1))
    found = torch.where(reached(labels), same, same * damped)
    return _smooth(found)


def reached(labels: Tensor) -> Tensor:
    """(B, h, w) integer labels -> (B, N, N) bool: whether the way from patch i towards j keeps i's label.

    The way is tested at i + n / most (j - i) for n up to the pair's own steps, each rounded to a patch, most
    being the largest number of steps in the grid: pairs close to each other are tested on the first part of
    their way only, as released.
    """
    height, width = labels.shape[1:]
    flat = labels.flatten(1).int()
    steps = _steps((height, width)).to(labels.device)
    most = int(steps.max())
    clear = torch.ones(len(flat), height * width, height * width, dtype=torch.bool, device=labels.device)
    for n in range(1, most + 1):
        down, across = (_part_way(size, n, most, labels.device) for size in (height, width))
        place = down[:, None, :, None] * width + across[None, :, None, :]
        kept = flat[:, place.reshape(height * width, -1)] == flat[:, :, None]
        clear &= kept | (steps < n)
    return clear


def _part_way(size: int, n: int, most: int, device: torch.device) -> Tensor:
    """(size, size) int64: where one is n / most of the way from a row (or column) to another, to the nearest,
    halves to the even one.
    """
    start = torch.arange(size, device=device, dtype=torch.float64)
    return (start[:, None] + (start - start[:, None]) * (n / most)).round().long()


@lru_cache(maxsize=16)
def _steps(grid: tuple[int, int]) -> Tensor:
    """(N, N) int64: the larger of the distances down and across of two patches."""
    rows, columns = (torch.arange(size) for size in grid)
    down, across = ((line[:, None] - line).abs() for line in (rows, columns))
    return torch.maximum(down[:, None, :, None], across[None, :, None, :]).flatten(2).flatten(0, 1)


def _smooth(rows: Tensor) -> Tensor:
    """(B, N, N) not negative -> the same, every row smoothed and brought to sum one."""
    taps = torch.arange(-REACH, REACH + 1, device=rows.device)
    kernel = torch.exp(-(taps**2) / (2 * SIGMA**2))
    smooth = F.conv1d(rows.flatten(0, 1)[:, None], (kernel / kernel.sum())[None, None], padding=REACH)
    found = smooth.reshape(rows.shape)
    return found / found.sum(dim=-1, keepdim=True)
