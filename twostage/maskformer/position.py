"""Where a place of a feature map lies, as sines and cosines (Carion et al., DETR, 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twostage.maskformer.config import MaskFormerError


def sine_positions(
    height: int, width: int, channels: int, device: torch.device | str | None = None, temperature: float = 1e4
) -> Tensor:
    """(channels, height, width) float32: half the channels for y, then half for x, sine, cosine, sine...

    Rows count 1..height and are divided by height + 1e-6, times 2 pi; columns likewise.

    Raises:
        MaskFormerError: channels is not a multiple of 4.
    """
    if channels % 4:
        raise MaskFormerError(f"sine_positions: channels have to be a multiple of 4, got {channels}.")
    half = channels // 2
    wavelength = temperature ** (torch.arange(0, half, 2, device=device, dtype=torch.float32) / half)

    def axis(count: int) -> Tensor:
        place = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        angle = (place / (count + 1e-6) * (2 * math.pi))[:, None] / wavelength
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (count, half)

    rows = axis(height).T[:, :, None].expand(half, height, width)
    columns = axis(width).T[:, None, :].expand(half, height, width)
    return torch.cat([rows, columns])
