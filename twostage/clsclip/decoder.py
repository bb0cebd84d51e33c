"""From patch tokens that know the word to two logits a patch: not this word, this word.

The published text gives two transformer layers; the convolutions are those of the follow-up ESDA.
Shapes: B pairs of an image and a word, h x w grid, N = h * w, D width.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from twostage.clsclip.config import ClsClipNetworkConfig


class Decoder(nn.Module):
    """Pre-norm transformer layers over the patches, then 3 x 3 convolutions and one of 1 x 1."""

    def __init__(self, config: ClsClipNetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                config.decoder_heads,
                config.decoder_factor * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.decoder_layers)
        )
        # Pre-norm layers leave their sum as it is; the convolutions want it of one size.
        self.norm = nn.LayerNorm(width)
        steps: list[nn.Module] = []
        for inside, outside in itertools.pairwise((width, *config.head_widths)):
            steps += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU()]
        self.head = nn.Sequential(*steps, nn.Dropout(config.dropout), nn.Conv2d(config.head_widths[-1], 2, 1))

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """patches: (B, N, D) -> (B, 2, h, w) logits of background and foreground."""
        for layer in self.layers:
            patches = layer(patches)
        maps: Tensor = self.head(self.norm(patches).transpose(1, 2).unflatten(2, grid))
        return maps
