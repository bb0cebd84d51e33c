"""Where global tokens emerge: the block from which all patches look at the same few.

Such a token is a bright vertical stripe in an attention map (GCLIP, Wang, Yan, Kang, 2025, figure 1). The
paper finds these blocks automatically, by a rule that its public text does not give. Ours: a block's stripe
score is the share of attention that its most looked-at patch gets, times the number of patches (1 where all
get the same); the first block whose score exceeds five times the median of the first five blocks' scores.

Shapes: B images, N patches, L = N + 1 tokens (row 0 is the class token).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from twostage.clip.towers import PositionMode
from twostage.readout import vit
from twostage.readout.engine import NATIVE_DEPTH, Tower

logger = logging.getLogger(__name__)

TIMES = 5.0
"""How much stronger than the first blocks' a stripe has to be."""
FIRST = 5
"""How many blocks from the first are the measure."""


def stripe_score(attention: Tensor) -> Tensor:
    """(B, L, L) a map -> (B,) its stripe score: max over patches j of N * mean over patches i of A[i, j]."""
    between_patches = attention[:, 1:, 1:]
    return between_patches.mean(dim=1).amax(dim=1) * between_patches.shape[2]


@torch.no_grad()
def stripe_scores(tower: Tower, pixels: Tensor, positions: PositionMode = "bicubic_scale") -> Tensor:
    """pixels: (B, 3, H, W) normalised -> (B, depth - 1) float32, the stripe score of each block before the
    last, of its map's mean over heads, nothing suppressed.
    """
    tokens, _ = vit.embed(tower.visual, pixels, positions)
    scores = []
    for block in tower.blocks[:-1]:
        q, k = vit.project(block, tokens, "qk")
        scores.append(stripe_score(vit.product(q, k).float().softmax(dim=-1).mean(dim=1)))
        tokens = vit.run_block(block, tokens)
    return torch.stack(scores, dim=1)


def fall_back(depth: int) -> int:
    """The block to take where none stands out: the middle one, 6 of ViT-B's twelve."""
    return min(depth // 2, depth - 2)


def first_emerging(scores: Tensor, times: float = TIMES) -> int | None:
    """scores: (depth - 1,) of the blocks before the last -> the first block that stands out, or None.

    Towers deeper than twelve blocks are searched from the middle on (ViT-L/14: from block 12).
    """
    depth = len(scores) + 1
    bound = times * scores[:FIRST].quantile(0.5)
    start = 0 if depth <= NATIVE_DEPTH else depth // 2
    above = [block for block in range(start, depth - 1) if scores[block] > bound]
    return above[0] if above else None


def emerging(
    tower: Tower, pixels: Tensor, times: float = TIMES, positions: PositionMode = "bicubic_scale"
) -> int:
    """The block where global tokens emerge, or `fall_back` where they do not.

    pixels: (B, 3, H, W) normalised, in the tower's dtype, whose scores are averaged; about 32 images are a
    fair sample. The answer is kept: later calls with this tower and `times` give it whatever their images
    are. The log says what was found and the scores it rests on.
    """

    def find() -> int:
        scores = stripe_scores(tower, pixels, positions).mean(dim=0).cpu()
        found = first_emerging(scores, times)
        block = fall_back(len(tower.blocks)) if found is None else found
        logger.info(
            "Global tokens %s (%d images; stripe scores of blocks 0 to %d: %s)",
            f"emerge in no block: block {block} is taken" if found is None else f"emerge in block {block}",
            len(pixels),
            len(scores) - 1,
            " ".join(f"{float(score):.2f}" for score in scores),
        )
        return block

    block: int = tower.once(("emerging", times), find)
    return block
