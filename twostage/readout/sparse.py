"""The image tower on the patches that show something: those of one even colour are left out of the sequence.

A crop of a mask is filled with one colour outside the mask. A patch of nothing but that colour says the same
for every photo. Without it the class token looks at the object alone, and the tower has less to do. What
comes out differs from what the whole crop gives.

Shapes: B crops, N patches, L = N + 1 tokens (row 0 is the class token), D width, E joint width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.readout import vit
from twostage.readout.engine import Tower

EVEN = 1e-5
"""Largest difference from the fill colour, normalised, within a patch that counts as filled."""


def speaking_patches(pixels: Tensor, fill: Tensor | None, cell_hw: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) normalised crops -> (B, N) bool, which patches are not filled.

    fill: (3, 1, 1), the fill colour normalised, None for 0; cell_hw: height and width of a patch in pixels.
    """
    apart = pixels if fill is None else pixels - fill.to(pixels.device)
    largest = apart.abs().amax(dim=1)
    return (F.max_pool2d(largest[:, None], cell_hw, cell_hw)[:, 0] > EVEN).flatten(1)


def encode_speaking(tower: Tower, pixels: Tensor, speaking: Tensor) -> Tensor:
    """Unit features (B, E) float32 of the class token, which sees the speaking patches.

    pixels: (B, 3, H, W) normalised, in the tower's format; speaking: (B, N) bool. All crops of a batch keep
    as many patches as the one that speaks most, so that no token has to be masked; give crops of like shares
    together.
    """
    tokens, _ = vit.embed(tower.visual, pixels)
    most = max(1, int(speaking.sum(dim=1).max()))
    if most < speaking.shape[1]:
        # Stable: the speaking ones first, in reading order, then as many filled ones as are needed.
        kept = torch.argsort(~speaking, dim=1, stable=True)[:, :most] + 1
        kept = torch.cat([kept.new_zeros(len(kept), 1), kept], dim=1)
        tokens = torch.take_along_dim(tokens, kept[:, :, None].to(tokens.device), dim=1)
    for block in tower.blocks:
        tokens = vit.run_block(block, tokens)
    return F.normalize(vit.readout(tower.visual, tokens[:, :1])[:, 0].float(), dim=-1)


class SpeakingEncoder:
    """Crops of one fill colour in, features out."""

    def __init__(self, clip: ClipModel, fill: Tensor | None) -> None:
        """fill: (3, 1, 1), the fill colour normalised, None for 0.

        Raises:
            DenseTowerError: the image tower is no VisionTransformer.
        """
        self._clip, self._fill = clip, fill
        self._tower = Tower(clip.visual)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, E) float32 rows of length one."""
        speaking = speaking_patches(pixels, self._fill, self._tower.cell_hw)
        return encode_speaking(self._tower, pixels.to(self._clip.device, self._clip.dtype), speaking)
