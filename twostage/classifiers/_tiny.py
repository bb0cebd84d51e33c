"""The smallest thing that can stand in for CLIP's image tower where only the plumbing is tested."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class TinyImageModel:
    """A fixed random projection of 8 x 8 averaged pixels onto 16 numbers; a real function of the picture, no
    network.
    """

    image_size = (32, 32)
    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    dim = 16

    def __init__(self) -> None:
        self._matrix = torch.randn(3 * 8 * 8, self.dim, generator=torch.Generator().manual_seed(0))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> (B, 16) float32 rows of length one."""
        small = F.adaptive_avg_pool2d(pixels.float(), (8, 8)).flatten(1)
        return F.normalize(small @ self._matrix.to(pixels.device) + 1e-3, dim=1)
