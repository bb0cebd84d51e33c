"""The class token alone: what the image tower says of a crop, at no more cost than that takes.

In the last block nothing but the class token is read, so only it asks, and only it goes through the MLP: 6 %
of a ViT-B/16's work less, and the same but for rounding.

A crop of a mask is filled with one colour outside the mask. A patch of nothing but that colour says the same
for every photo. Without such patches the class token looks at the object alone, and there is less to do. What
comes out then differs from what the whole crop gives.

Shapes: B crops, N patches, L = N + 1 tokens (row 0 is the class token), D width, E joint width.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.ops.memory import out_of_memory
from twostage.readout import vit
from twostage.readout.engine import Tower

logger = logging.getLogger(__name__)
EVEN = 1e-5
"""Largest difference from the fill colour, normalised, within a patch that counts as filled."""


def speaking_patches(pixels: Tensor, fill: Tensor | None, cell_hw: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) normalised crops -> (B, N) bool, which patches are not filled.

    fill: (3, 1, 1), the fill colour normalised, None for 0; cell_hw: height and width of a patch in pixels.
    """
    apart = pixels if fill is None else pixels - fill.to(pixels.device)
    largest = apart.abs().amax(dim=1)
    return (F.max_pool2d(largest[:, None], cell_hw, cell_hw)[:, 0] > EVEN).flatten(1)


def class_features(tower: Tower, tokens: Tensor) -> Tensor:
    """(B, L, D) as they enter the first block -> (B, E) float32, the class token read out, of length one."""
    for block in tower.blocks[:-1]:
        tokens = vit.run_block(block, tokens)
    first = _last_block(tower.blocks[-1], tokens)
    return F.normalize(vit.readout(tower.visual, first)[:, 0].float(), dim=-1)


def _last_block(block: Any, tokens: Tensor) -> Tensor:
    """(B, L, D) -> (B, 1, D), what becomes of the class token."""
    normed = block.ln_1(tokens)
    [q] = vit.project_normed(block, normed[:, :1], "q")
    k, v = vit.project_normed(block, normed, "kv")
    mixed = F.scaled_dot_product_attention(q, k, v)
    first = tokens[:, :1] + block.ls_1(vit.merge_heads(block, mixed))
    out: Tensor = first + block.ls_2(vit.feed_forward(block, block.ln_2(first)))
    return out


def without_filled(tokens: Tensor, speaking: Tensor) -> Tensor:
    """(B, L, D) -> (B, L', D), filled patches left out.

    speaking: (B, N) bool. All crops of a batch keep as many patches as the one that speaks most, so that no
    token has to be masked; give crops of like shares together.
    """
    most = max(1, int(speaking.sum(dim=1).max()))
    if most == speaking.shape[1]:
        return tokens
    # Stable: the speaking ones first, in reading order, then as many filled ones as are needed.
    kept = torch.argsort(~speaking, dim=1, stable=True)[:, :most] + 1
    kept = torch.cat([kept.new_zeros(len(kept), 1), kept], dim=1)
    return torch.take_along_dim(tokens, kept[:, :, None].to(tokens.device), dim=1)


class ClassTokenEncoder:
    """Crops in, features out: `encode_images` of a CLIP whose image tower is a VisionTransformer."""

    def __init__(
        self,
        clip: ClipModel,
        skip_filled: bool = False,
        fill: Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        """skip_filled: leave filled patches out; fill: (3, 1, 1), the fill colour normalised, None for 0;
        compiled: compile what is done to tokens when the first crops come. Then all batches should have the
        first one's size: a smaller one is filled up, a larger one compiles anew.

        Raises:
            DenseTowerError: the image tower is none that is computed here.
        """
        self._clip, self._skip_filled, self._fill = clip, skip_filled, fill
        self._tower = Tower(clip.visual)
        self._features: Callable[[Tensor], Tensor] = self._plain
        if compiled and not skip_filled:  # without a fixed length there is nothing to gain
            self._features = _Compiled(self._plain)

    def _plain(self, tokens: Tensor) -> Tensor:
        return class_features(self._tower, tokens)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32, normalised -> (B, E) float32 rows of length one."""
        tokens, _ = vit.embed(self._tower.visual, pixels.to(self._clip.device, self._clip.dtype))
        if self._skip_filled:
            speaking = speaking_patches(pixels, self._fill, self._tower.cell_hw)
            tokens = without_filled(tokens, speaking)
        return self._features(tokens)


class _Compiled:
    """A function of a batch, compiled for batches of the first one's size; as it is where that fails."""

    def __init__(self, plain: Callable[[Tensor], Tensor]) -> None:
        self._plain = plain
        self._run: Callable[[Tensor], Tensor] = torch.compile(plain, dynamic=False)
        self._inductor: Any = importlib.import_module("torch._inductor.config")
        self._size = 0
        self._works = True

    def __call__(self, batch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self._works:
            return self._plain(batch)
        if not self._size:
            logger.info("Compiling CLIP's image tower: about a minute.")
        self._size = max(self._size, len(batch))
        missing = self._size - len(batch)
        full = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
        try:
            # Freezing takes the weights as constants, laid out once for the matrix units: all of the gain.
            # As an option of torch.compile it has no effect.
            with self._inductor.patch(freezing=True):
                return self._run(full)[: len(batch)]
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()
            logger.warning("CLIP.COMPILE: not compiled (%s).", reason[0] if reason else type(error).__name__)
            self._works = False
            return self._plain(batch)


def reads_class_token(visual: Any) -> bool:
    """Whether `ClassTokenEncoder` can compute this image tower."""
    try:
        vit.require_vit(visual)
    except vit.DenseTowerError:
        return False
    return True
