"""All masks of an image classified in one pass of CLIP, each by a class token that may look at its own
patches only.

The whole tower sees the whole image once; a hundred masks add a hundred tokens to its patches. How the tokens
look is told in `twostage.readout.masked`. The neighbour of `pooled` at level "attention", whose tokens start
later, weigh patches by how much of them a mask covers, and do not look at themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.classifiers._looks import batches, check_pairs, check_text, size_for, unit
from twostage.clip.model import ClipModel
from twostage.clip.towers import POSITION_MODES, PositionMode, is_resnet
from twostage.errors import TwostageError
from twostage.ops.pooling import region_shares
from twostage.readout import vit
from twostage.readout.engine import Tower
from twostage.readout.masked import held_patches, look_with_masks
from twostage.readout.pooling_resnet import ResnetReader
from twostage.readout.vit import DenseTowerError
from twostage.types import Proposals, RegionScores, TextBank
from twostage.vocabulary import nearest


class MaskedAttentionClassifier:
    """Names masks by class tokens that look at the patches of their mask.

    Raises:
        TwostageError: an option has an unfit value, or masks, images and text do not fit together.
        DenseTowerError: the image tower is neither a plain VisionTransformer nor a ModifiedResNet, or has no
            block `from_block`.
    """

    @dataclass(frozen=True)
    class Config:
        """from_block: the block of a VisionTransformer from which on every mask has its own token, 0 for all;
        before it the token is the image's own, which sees everything. A ModifiedResNet has one attention, its
        pool, so only 0 there. itself: whether a token looks at itself too, as the trained one does;
        patch_threshold: a patch belongs to a mask that covers at least this share of it; a mask that covers
        no patch so far has its best one. mask_threshold: a soft mask holds the pixels strictly above it.

        short_edge: pixels of the image's short side before the tower; None: twice the tower's own size; 0: as
        it is. long_edge: pixels that the long side may have at most. positions: how the position table is
        brought to the grid. logit_factor: factor on the text bank's scale. chunk: images in one pass;
        mask_chunk: masks of an image whose attention is computed at once, which bounds the memory.
        """

        from_block: int = 0
        itself: bool = True
        patch_threshold: float = 0.5
        mask_threshold: float = 0.5
        short_edge: int | None = None
        long_edge: int = 2048
        positions: PositionMode = "bicubic"
        logit_factor: float = 1.0
        chunk: int = 8
        mask_chunk: int = 128

        def __post_init__(self) -> None:
            _check_options(self)

    def __init__(self, config: Config, clip: ClipModel) -> None:
        self.config = config
        self.clip = clip
        self._pool: ResnetReader | None = None
        if is_resnet(clip.visual):
            if config.from_block:
                raise DenseTowerError(
                    f"MaskedAttentionClassifier: from_block {config.from_block} counts the blocks of a "
                    "VisionTransformer, and a ModifiedResNet has none; leave it out, or choose a ViT "
                    "(CLIP.MODEL ViT-B-16-quickgelu)."
                )
            self._pool = ResnetReader(clip.visual, config.positions, config.itself)
            self.cell_hw = (32, 32)
            return
        self._tower = Tower(clip.visual)
        self.cell_hw = self._tower.cell_hw
        depth = len(self._tower.blocks)
        if config.from_block >= depth:
            raise DenseTowerError(
                f"MaskedAttentionClassifier: from_block should be 0 to {depth - 1}, a block of {clip.name}, "
                f"got {config.from_block}."
            )

    @classmethod
    def tiny(cls) -> MaskedAttentionClassifier:
        """The smallest shipped ViT with random weights."""
        return cls(cls.Config(), ClipModel.load("twostage-mini-vit", "random", seed=0))

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """images: RGB uint8 (3, H, W); proposals: masks of the same sizes -> class logits of each mask, and
        of the image as a whole (RegionScores.image).

        The tower runs once an image, images of one size together. Rows of empty masks are kept: valid is
        False there and the logits are 0.
        """
        check_pairs("MaskedAttentionClassifier", images, proposals)
        check_text("MaskedAttentionClassifier", self.clip, text)
        config, bank = self.config, text.to(self.clip.device)
        sizes = [
            size_for(image, self.clip, config.short_edge, config.long_edge, self.cell_hw) for image in images
        ]
        found: dict[int, RegionScores] = {}
        for indices, pixels in batches(images, sizes, self.clip, config.chunk):
            grid = (pixels.shape[2] // self.cell_hw[0], pixels.shape[3] // self.cell_hw[1])
            held = [self._held(proposals[index].masks, grid) for index in indices]
            regions, wholes = self._look(pixels, held)
            for place, index in enumerate(indices):
                scores = self._scores(regions[place], wholes[place], held[place].any(dim=1), bank)
                found[index] = scores.to(images[index].device)
        return [found[index] for index in range(len(images))]

    def _held(self, masks: Tensor, grid: tuple[int, int]) -> Tensor:
        """(R, N) bool, the patches of each mask; none where it is empty."""
        shares, _ = region_shares(masks.to(self.clip.device), grid, self.config.mask_threshold)
        return held_patches(shares, self.config.patch_threshold)

    def _look(self, pixels: Tensor, held: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(B, 3, H, W) and the (R, N) patches of each image's masks -> (R, E) each and (B, E) of the images,
        in the joint space, not normalised. Rows of masks that hold nothing mean nothing.
        """
        if self._pool is not None:
            seen = self._pool.look(pixels)
            anywhere = [_somewhere(own).float() for own in held]
            regions = [seen.attention(place, own) for place, own in enumerate(anywhere)]
            return regions, seen.image()
        config, visual = self.config, self.clip.visual
        tokens, _ = vit.embed(visual, pixels, config.positions)
        padded = _somewhere(torch.nn.utils.rnn.pad_sequence(list(held), batch_first=True))
        masks, image = look_with_masks(
            self._tower, tokens, padded, config.from_block, config.itself, config.mask_chunk
        )
        read = vit.readout(visual, torch.cat([image, masks], dim=1))
        return [read[place, 1 : 1 + len(own)] for place, own in enumerate(held)], read[:, 0]

    def _scores(self, regions: Tensor, whole: Tensor, valid: Tensor, text: TextBank) -> RegionScores:
        logits = text.logits(unit(torch.cat([whole[None], regions]))) * self.config.logit_factor
        return RegionScores(logits[1:] * valid[:, None], valid, image=logits[0])


def _somewhere(held: Tensor) -> Tensor:
    """The same rows, but those that hold nothing hold everything: attention to nothing is no number."""
    return held | ~held.any(dim=-1, keepdim=True)


def _check_options(config: MaskedAttentionClassifier.Config) -> None:
    who = "MaskedAttentionClassifier"
    least = {"from_block": 0, "short_edge": 0, "long_edge": 1, "chunk": 1, "mask_chunk": 1}
    for option, bound in least.items():
        value = getattr(config, option)
        if value is not None and value < bound:
            raise TwostageError(f"{who}: {option} must be at least {bound}, got {value}.")
    if not 0 < config.patch_threshold <= 1:
        raise TwostageError(
            f"{who}: patch_threshold must lie above 0 and be at most 1, got {config.patch_threshold}."
        )
    if not 0 <= config.mask_threshold < 1:
        raise TwostageError(f"{who}: mask_threshold must lie in [0, 1), got {config.mask_threshold}.")
    if config.logit_factor <= 0:
        raise TwostageError(f"{who}: logit_factor must be above 0, got {config.logit_factor}.")
    if config.positions not in POSITION_MODES:
        raise TwostageError(
            f"{who}: unknown positions {config.positions!r}.{nearest(config.positions, POSITION_MODES)}"
        )
