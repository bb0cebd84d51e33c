"""ClsCLIP (Wu et al., "[CLS] Token is All You Need for Zero-Shot Semantic Segmentation", arXiv 2304.06212).

A word's text feature takes the place of the class token at the entrance of some early blocks of the frozen
image tower; patches read it there as a key and a value, so that they speak of this word from then on.

Shapes: B images, P pairs of an image and a word, h x w grid, N = h * w, L = N + 1 tokens (row 0 is the class
token), D width, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twostage.clsclip.config import ClsClipError, ClsClipNetworkConfig
from twostage.clsclip.decoder import Decoder
from twostage.readout import vit


@dataclass(frozen=True)
class Started:
    """Images as they enter the first block with a word. tokens: (B, L, D); grid: (h, w)."""

    tokens: Tensor
    grid: tuple[int, int]


class ClsClipNetwork(nn.Module):
    """The trained half: the map from words to class tokens, and the decoder. The tower is an argument of
    every call and stays as it is.
    """

    def __init__(self, config: ClsClipNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.first, self.end = config.placed
        count = self.end - self.first if config.per_layer else 1
        self.maps = nn.ModuleList(nn.Linear(config.embedding_dim, config.width) for _ in range(count))
        self.decoder = Decoder(config)

    def start(self, visual: Any, pixels: Tensor) -> Started:
        """(B, 3, H, W) normalised, in the tower's dtype: the blocks that no word enters, once an image.

        Raises:
            ClsClipError: the tower has another width or depth than this network was made for.
        """
        blocks = self._blocks_of(visual)
        with torch.no_grad():  # nothing here is trained
            tokens, grid = vit.embed(visual, pixels, self.config.positions)
            for block in blocks[: self.first]:
                tokens = vit.run_block(block, tokens)
        return Started(tokens, grid)

    def patches(self, visual: Any, started: Started, words: Tensor, image_of: Tensor) -> Tensor:
        """What leaves the last block, before the tower's last norm: (P, N, D).

        words: (P, E) float32 text features; image_of: (P,) int64, the image of each pair.

        Raises:
            ClsClipError: the words have another width, or there is none.
        """
        if words.ndim != 2 or words.shape[1] != self.config.embedding_dim or len(words) == 0:
            raise ClsClipError(
                f"ClsClipNetwork: expected text features (P, {self.config.embedding_dim}) of one word or "
                f"more, got {tuple(words.shape)}. Make them with the text tower of CLIP.MODEL."
            )
        tokens = started.tokens[image_of]
        for number, block in enumerate(self._blocks_of(visual)[self.first :], start=self.first):
            if number < self.end:
                tokens = torch.cat([self.class_token(number, words, tokens.dtype), tokens[:, 1:]], dim=1)
            tokens = vit.run_block(block, tokens)
        return tokens[:, 1:]

    def class_token(self, block: int, words: Tensor, dtype: torch.dtype) -> Tensor:
        """(P, E) words -> (P, 1, D), what takes the class token's place at the entrance of this block."""
        chosen = self.maps[block - self.first if self.config.per_layer else 0]
        token: Tensor = chosen(words).to(dtype)
        return token[:, None]

    def finish(self, visual: Any, started: Started, words: Tensor, image_of: Tensor) -> Tensor:
        """The rest of the tower and the decoder: (P, 2, h, w) float32 logits of background and foreground;
        the arguments of `patches`.
        """
        patches = self.patches(visual, started, words, image_of)
        maps: Tensor = self.decoder(patches.to(self.decoder.norm.weight.dtype), started.grid)
        return maps.float()

    def forward(self, visual: Any, pixels: Tensor, words: Tensor) -> Tensor:
        """One word for each image: (B, 3, H, W) normalised and (B, E) -> (B, 2, h, w)."""
        everyone = torch.arange(len(pixels), device=pixels.device)
        return self.finish(visual, self.start(visual, pixels), words, everyone)

    def _blocks_of(self, visual: Any) -> list[Any]:
        blocks = vit.blocks(visual)
        found = (int(visual.class_embedding.shape[0]), len(blocks))
        if found != (self.config.width, self.config.depth):
            raise ClsClipError(
                f"ClsClipNetwork: made for tokens {self.config.width} wide and {self.config.depth} blocks, "
                f"the image tower has {found[0]} and {found[1]}. Set CLIP.MODEL to the one of its training."
            )
        return blocks
