"""A word in the class token's place without any training. EXPERIMENTAL: no publication supports it.

The text feature is taken back through the tower's projection by its pseudo-inverse, given the length of the
image's own class token at that block, and added to it. There is no decoder without training either, so
patches are read as MaskCLIP does (Zhou et al., 2022), each by its own value, and compared with the word.

Shapes: P pairs of an image and a word, N patches, L = N + 1 tokens, D width, E joint width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from twostage.clsclip.config import ClsClipError
from twostage.clsclip.network import Started
from twostage.readout import vit


class PinvInjection:
    """The same steps as ClsClipNetwork, `start` and `logits`, of a tower's own weights alone."""

    def __init__(self, visual: Any, placed: tuple[int, int], positions: Any = "bilinear") -> None:
        """placed: (first, end) blocks whose class token is the word.

        Raises:
            ClsClipError: the tower has no projection to invert, or the last block would be one of these.
        """
        if visual.proj is None:
            raise ClsClipError("PinvInjection: the image tower has no projection that could be inverted.")
        if placed[1] >= len(vit.blocks(visual)):
            raise ClsClipError(
                f"PinvInjection: blocks {placed} of {len(vit.blocks(visual))} would reach the last one, "
                "whose patches look at themselves alone. Choose earlier blocks."
            )
        self.first, self.end = placed
        self._positions = positions
        self._inverse = torch.linalg.pinv(visual.proj.float())  # (E, D)

    def start(self, visual: Any, pixels: Tensor) -> Started:
        """(B, 3, H, W) normalised -> the tokens that enter the first block with a word."""
        tokens, grid = vit.embed(visual, pixels, self._positions)
        for block in vit.blocks(visual)[: self.first]:
            tokens = vit.run_block(block, tokens)
        return Started(tokens, grid)

    def logits(self, visual: Any, started: Started, words: Tensor, image_of: Tensor) -> Tensor:
        """(P, E) unit words -> (P, h, w) float32 cosines of every patch with its pair's word."""
        blocks = vit.blocks(visual)
        own, tokens = started.tokens, started.tokens[image_of]
        for number in range(self.first, self.end):
            tokens = torch.cat([self.class_token(words, own[image_of, 0]), tokens[:, 1:]], dim=1)
            tokens = vit.run_block(blocks[number], tokens)
            own = vit.run_block(blocks[number], own)
        for block in blocks[self.end : -1]:
            tokens = vit.run_block(block, tokens)
        last = blocks[-1]
        patches = tokens[:, 1:]
        patches = patches + last.ls_1(vit.merge_heads(last, vit.project(last, patches, "v")[0]))
        patches = patches + last.ls_2(vit.feed_forward(last, last.ln_2(patches)))
        unit = functional.normalize(vit.readout(visual, patches).float(), dim=-1)
        cosines: Tensor = torch.einsum("pnd,pd->pn", unit, words.float())
        maps: Tensor = cosines.unflatten(1, started.grid)
        return maps

    def class_token(self, words: Tensor, own: Tensor) -> Tensor:
        """(P, E) words and (P, D) native class tokens -> (P, 1, D) what takes their place."""
        back = functional.normalize(words.float() @ self._inverse, dim=-1)
        token: Tensor = own.float() + own.float().norm(dim=-1, keepdim=True) * back
        return token.to(own.dtype)[:, None]
