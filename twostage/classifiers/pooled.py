"""All masks of an image classified in one pass of CLIP: the fast alternative to crops.

Section I of the dense family's formulas: where many patches become one region is a choice of four levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twostage.classifiers._looks import batches, check_pairs, check_text, size_for, unit
from twostage.clip.model import ClipModel
from twostage.clip.towers import POSITION_MODES, PositionMode, is_resnet
from twostage.errors import TwostageError
from twostage.ops.pooling import mean_under, region_shares
from twostage.readout.attention import parse
from twostage.readout.engine import Tower, fitted
from twostage.readout.knobs import Knobs
from twostage.readout.pooling import Pass, Reader, VitReader
from twostage.readout.pooling_resnet import ResnetReader
from twostage.readout.vit import DenseTowerError
from twostage.types import Proposals, RegionScores, TextBank
from twostage.vocabulary import nearest

CHOICES = {"level": ("logits", "features", "values", "attention"), "positions": POSITION_MODES}


class PooledClassifier:
    """Names masks by what one look at the whole image leaves under them.

    Raises:
        TwostageError: an option has no such value, or masks, images and text do not fit together.
        DenseTowerError: the image tower has no readout of single places, or not this one.
    """

    @dataclass(frozen=True)
    class Config:
        """level: where places become a region. "logits": the mean of the places' logits; "features": the mean
        of their unit features, brought to length one (the same order of classes, but for synonyms); "values":
        the mean of the last block's values, before its MLP (TextRegion); on a ModifiedResNet the mean of the
        places' vectors before they are brought to length one, which is the same as pooling its values, for
        only linear layers follow; "attention": every mask has a class token that looks at its own places only
        (on a ModifiedResNet: the attention pool).

        short_edge: pixels of the image's short side before the tower; None: twice the tower's own size; 0: as
        it is. long_edge: pixels that the long side may have at most. positions: how the position table is
        brought to the grid. mask_threshold: a soft mask holds the pixels strictly above it; None weighs by
        its values. logit_factor: factor on the text bank's scale.

        For a VisionTransformer: attention, where patches look in the last block, as the dense head writes it,
        at every level but "attention"; residual, ffn: whether the last block adds its input and runs its MLP,
        None for on at "logits" and "features", and at "values" the residual off. For level "attention":
        blocks, how many last blocks the masks' own tokens go through, 0 for two thirds of the tower (a
        ModifiedResNet has one); itself: whether such a token looks at itself too, as the trained one does.

        chunk: images in one pass of the tower; mask_chunk: masks of an image pooled at once, which bounds the
        memory.
        """

        level: Literal["logits", "features", "values", "attention"] = "values"
        short_edge: int | None = None
        long_edge: int = 2048
        positions: PositionMode = "bicubic"
        mask_threshold: float | None = 0.5
        logit_factor: float = 1.0
        attention: str = "identity"
        residual: bool | None = None
        ffn: bool | None = None
        blocks: int = 0
        itself: bool = False
        chunk: int = 8
        mask_chunk: int = 64

        def __post_init__(self) -> None:
            _check_options(self)

        @property
        def knobs(self) -> Knobs:
            """How a VisionTransformer's last block is read, with ViT-B's block numbers."""
            residual = self.level != "values" if self.residual is None else self.residual
            ffn = True if self.ffn is None else self.ffn
            return Knobs(self.attention, residual=residual, ffn=ffn, positions=self.positions)

    def __init__(self, config: Config, clip: ClipModel) -> None:
        self.config = config
        self.clip = clip
        self._reader: Reader
        if is_resnet(clip.visual):
            _require_resnet_options(config)
            self._reader = ResnetReader(clip.visual, config.positions, config.itself)
            self.cell_hw = (32, 32)
        else:
            tower = Tower(clip.visual)
            depth = len(tower.blocks)
            blocks = config.blocks or max(1, round(depth * 2 / 3))
            self._reader = VitReader(tower, fitted(config.knobs, depth), blocks, config.itself)
            self.cell_hw = tower.cell_hw

    @classmethod
    def tiny(cls) -> PooledClassifier:
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
        check_pairs("PooledClassifier", images, proposals)
        check_text("PooledClassifier", self.clip, text)
        bank = text.to(self.clip.device)
        found: dict[int, RegionScores] = {}
        for indices, seen in self._passes(images):
            wholes = self._logits(seen.image(), bank)
            for place, index in enumerate(indices):
                logits, valid = self._regions(seen, place, proposals[index].masks, bank)
                scores = RegionScores(logits, valid, image=wholes[place])
                found[index] = scores.to(images[index].device)
        return [found[index] for index in range(len(images))]

    def _passes(self, images: Sequence[Tensor]) -> Iterator[tuple[list[int], Pass]]:
        """Which images one pass of the tower saw, and what it left behind."""
        config = self.config
        sizes = [
            size_for(image, self.clip, config.short_edge, config.long_edge, self.cell_hw) for image in images
        ]
        for indices, pixels in batches(images, sizes, self.clip, config.chunk):
            yield indices, self._reader.look(pixels)

    def _regions(self, seen: Pass, place: int, masks: Tensor, text: TextBank) -> tuple[Tensor, Tensor]:
        """(N, K) float32 logits of one image's masks, zero where they are empty, and (N,) bool, which are
        valid; `mask_chunk` masks at a time.
        """
        logits = torch.zeros(len(masks), text.num_classes, device=self.clip.device)
        valid = torch.zeros(len(masks), dtype=torch.bool, device=self.clip.device)
        rows = self._rows(seen, place, text)
        for start in range(0, len(masks), self.config.mask_chunk):
            part = slice(start, start + self.config.mask_chunk)
            shares, held = region_shares(
                masks[part].to(self.clip.device), seen.grid, self.config.mask_threshold
            )
            valid[part] = held
            if bool(held.any()):
                where = start + held.nonzero()[:, 0]
                logits[where] = self._pooled(seen, place, rows, shares[held], text)
        return logits, valid

    def _rows(self, seen: Pass, place: int, text: TextBank) -> Tensor | None:
        """What levels "logits" and "features" average: the places' (n, K) logits or (n, E) unit features."""
        if self.config.level not in ("logits", "features"):
            return None
        rows = seen.places(place)
        return self._logits(rows, text) if self.config.level == "logits" else unit(rows)

    def _pooled(self, seen: Pass, place: int, rows: Tensor | None, shares: Tensor, text: TextBank) -> Tensor:
        """(R, K) of the regions with these shares (R, n) of the places."""
        if rows is not None:
            mean = mean_under(rows, shares)
            return mean if self.config.level == "logits" else self._logits(mean, text)
        pool = seen.values if self.config.level == "values" else seen.attention
        return self._logits(pool(place, shares), text)

    def _logits(self, rows: Tensor, text: TextBank) -> Tensor:
        """(n, E) of any length -> (n, K) float32 logits."""
        return text.logits(unit(rows)) * self.config.logit_factor


def _require_resnet_options(config: PooledClassifier.Config) -> None:
    own = PooledClassifier.Config()
    for option in ("attention", "residual", "ffn", "blocks"):
        if getattr(config, option) != getattr(own, option):
            raise DenseTowerError(
                f"PooledClassifier: {option} {getattr(config, option)!r} changes the blocks of a "
                "VisionTransformer, and a ModifiedResNet has none; leave it out, or choose a ViT "
                "(CLIP.MODEL ViT-B-16-quickgelu)."
            )


def _check_options(config: PooledClassifier.Config) -> None:
    for option, allowed in CHOICES.items():
        value = getattr(config, option)
        if value not in allowed:
            raise TwostageError(
                f"PooledClassifier: unknown {option} {value!r}.{nearest(str(value), allowed)}"
            )
    least = {"short_edge": 0, "long_edge": 1, "blocks": 0, "chunk": 1, "mask_chunk": 1}
    for option, bound in least.items():
        value = getattr(config, option)
        if value is not None and value < bound:
            raise TwostageError(f"PooledClassifier: {option} must be at least {bound}, got {value}.")
    if config.mask_threshold is not None and not 0 <= config.mask_threshold < 1:
        raise TwostageError(
            f"PooledClassifier: mask_threshold must lie in [0, 1), got {config.mask_threshold}; None weighs "
            "by the soft mask itself."
        )
    if config.logit_factor <= 0:
        raise TwostageError(f"PooledClassifier: logit_factor must be above 0, got {config.logit_factor}.")
    parse(config.attention)
