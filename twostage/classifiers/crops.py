"""The paper's second stage: every mask is cut out of the photo, its background filled, and shown to CLIP
alone.

Follows "A Simple Baseline for Open-Vocabulary Semantic Segmentation with Pre-trained Vision-language Model"
(Xu et al., ECCV 2022). Crops of several images share chunks of bounded size, so memory does not grow with the
number of masks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from twostage.classifiers._budget import crops_that_fit
from twostage.classifiers._looks import check_pairs
from twostage.classifiers._patience import PatientEncoder
from twostage.clip.model import ClipModel
from twostage.errors import TwostageError
from twostage.interfaces import ImageTextModel
from twostage.ops.crops import Aspect, Canvas, Fill, cut_region, fill_colour, make_canvas, resize_region
from twostage.ops.masks import binarise, expand_boxes, mask_areas, mask_boxes
from twostage.ops.memory import activation_bytes
from twostage.readout.class_token import ClassTokenEncoder, reads_class_token
from twostage.types import Proposals, RegionScores, TextBank
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)
CHOICES = {"mode": ("paper", "antialias"), "mask_fill": ("mean", "zero"), "aspect": ("squash", "pad")}


class _Region(NamedTuple):
    """A valid mask on its way to CLIP: which row of the flat list of proposals it is, and where its pixels
    are.
    """

    row: int
    canvas: Canvas
    alpha: Tensor
    box_xyxy: list[int]


class CropClassifier:
    """Names masks by masked crops.

    Raises:
        TwostageError: an option has no such value, or masks and image differ in size.
    """

    per_mask = True
    """Every mask costs a look of its own, so that leaving some out pays."""

    @dataclass(frozen=True)
    class Config:
        """mode: "paper" resizes without antialias, "antialias" with it (better for large regions);
        mask_threshold: a soft mask holds the pixels strictly above it; mask_expand_ratio: growth of the box
        about its centre; mask_fill: background colour, CLIP's "mean" or "zero" (black); matting: blend by the
        soft mask instead of cutting at the threshold; aspect: "squash" to the square, or "pad" and keep the
        proportions; image_size: edge of the crops in pixels, 0 for CLIP's own (the paper: 224 whatever the
        model); chunk: crops in one CLIP batch, 0 to choose by device; skip_filled: leave patches of nothing
        but the fill colour out of CLIP's sequence: faster, and not the same (VisionTransformers only).
        """

        mode: Literal["paper", "antialias"] = "paper"
        mask_threshold: float = 0.5
        mask_expand_ratio: float = 1.0
        mask_fill: Fill = "mean"
        matting: bool = False
        aspect: Aspect = "squash"
        image_size: int = 0
        chunk: int = 0
        skip_filled: bool = False

        def __post_init__(self) -> None:
            for option, allowed in CHOICES.items():
                value = getattr(self, option)
                if value not in allowed:
                    raise TwostageError(
                        f"CropClassifier: unknown {option} {value!r}.{nearest(str(value), allowed)}"
                    )
            if self.mask_expand_ratio <= 0:
                raise TwostageError(
                    f"CropClassifier: mask_expand_ratio must be above 0, got {self.mask_expand_ratio}."
                )
            for option in ("image_size", "chunk"):
                if getattr(self, option) < 0:
                    raise TwostageError(
                        f"CropClassifier: {option} must not be negative, got {getattr(self, option)}."
                    )

    def __init__(
        self, config: Config, clip: ImageTextModel, max_memory: int = 0, compiled: bool = False
    ) -> None:
        """max_memory: bytes that masks, crops and CLIP's activations together may take, 0 for no limit;
        compiled: whether the image tower is compiled at the first photo, where it can be.
        """
        self.config = config
        self.clip = clip
        self._max_memory = max_memory
        self.encode = PatientEncoder(_encoder(config, clip, compiled))

    @torch.no_grad()
    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """images: RGB uint8 (3, H, W); proposals: masks of the same sizes -> class logits of each mask.

        Rows of empty masks are kept: valid is False there and the logits are 0.
        """
        scores = []
        for features, valid in self.features(images, proposals):
            logits = text.logits(features.to(text.features.device)).to(features.device)
            scores.append(RegionScores(logits, valid))
        return scores

    @torch.no_grad()
    def features(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals]
    ) -> list[tuple[Tensor, Tensor]]:
        """Unit CLIP features of each mask, (N, D) float32 with zeros for empty masks, and (N,) bool, which
        are valid.
        """
        check_pairs("CropClassifier", images, proposals)
        counts = [len(p) for p in proposals]
        device = images[0].device if images else torch.device("cpu")
        features = torch.zeros(sum(counts), self.clip.dim, device=device)
        valid = torch.zeros(sum(counts), dtype=torch.bool, device=device)
        for rows, pixels in self.chunks(images, proposals):
            index = torch.tensor(rows, device=device)
            features[index] = self.encode(pixels).to(device, torch.float32)
            valid[index] = True
        return list(zip(features.split(counts), valid.split(counts), strict=True))

    def chunks(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """CLIP's input, chunk by chunk across image borders.

        Yields the rows (positions in the concatenation of all proposals) and their crops (B, 3, S, S),
        normalised; the crops live in one buffer that the next chunk overwrites.
        """
        buffer, rows = self._buffer(images, proposals), list[int]()
        for region in self._regions(images, proposals):
            crop = cut_region(region.canvas, region.alpha, region.box_xyxy)
            antialias = self.config.mode == "antialias"
            resize_region(crop, buffer[len(rows)], region.canvas.fill, self.config.aspect, antialias)
            rows.append(region.row)
            if len(rows) == len(buffer):
                yield rows, buffer
                rows = []
        if rows:
            yield rows, buffer[: len(rows)]

    def _buffer(self, images: Sequence[Tensor], proposals: Sequence[Proposals]) -> Tensor:
        device = images[0].device if images else torch.device("cpu")
        # Four to eight crops keep activations in a processor's cache; accelerators want far more at once.
        size = self.config.chunk or (8 if device.type == "cpu" else 128)
        edge = self.config.image_size
        height, width = (edge, edge) if edge else self.clip.image_size
        if self._max_memory:
            crop = 3 * 4 * height * width
            size = min(size, crops_that_fit(self._max_memory, proposals, crop + self._activations))
        return torch.empty(size, 3, height, width, device=device)

    def _regions(self, images: Sequence[Tensor], proposals: Sequence[Proposals]) -> Iterator[_Region]:
        offset = 0
        for image, found in zip(images, proposals, strict=True):
            if len(found):
                binary = binarise(found.masks, self.config.mask_threshold)
                boxes = expand_boxes(mask_boxes(binary), self.config.mask_expand_ratio, found.size_hw)
                alpha = found.masks if self.config.matting else binary
                canvas = make_canvas(image, self.clip.mean, self.clip.std, self.config.mask_fill)
                order = _by_share(binary, boxes) if self.config.skip_filled else torch.arange(len(boxes))
                places = boxes.tolist()  # the only wait for the device, once an image
                for row in order.tolist():
                    if places[row][0] >= 0:
                        yield _Region(offset + row, canvas, alpha[row], places[row])
            offset += len(found)

    @cached_property
    def _activations(self) -> int:
        """Bytes that CLIP has alive at its peak for one crop."""
        network = getattr(self.clip, "visual", None)
        if network is None:
            return 0
        crop = torch.zeros(1, 3, *self.clip.image_size)
        return activation_bytes(network, lambda: self.clip.encode_images(crop))

    @classmethod
    def tiny(cls) -> CropClassifier:
        """A classifier over a random projection of 8 x 8 pixels, for contract tests."""
        from twostage.classifiers._tiny import TinyImageModel

        return cls(cls.Config(chunk=4), TinyImageModel())


def _encoder(
    config: CropClassifier.Config, clip: ImageTextModel, compiled: bool
) -> Callable[[Tensor], Tensor]:
    """The cheapest way to CLIP's features of crops."""
    if isinstance(clip, ClipModel) and reads_class_token(clip.visual):
        fill = fill_colour(clip.mean, clip.std, config.mask_fill)
        return ClassTokenEncoder(clip, config.skip_filled, fill, compiled)
    if config.skip_filled:
        raise TwostageError(
            "CropClassifier: skip_filled leaves tokens out of a VisionTransformer; this CLIP is none. Set "
            "CLASSIFIER.OPTIONS.SKIP_FILLED false."
        )
    if compiled:
        logger.warning("CLIP.COMPILE: only VisionTransformers are compiled; this image tower runs as it is.")
    return clip.encode_images


def _by_share(binary: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """(N,) int64: masks that fill like shares of their boxes stand together."""
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clamp(min=1)
    return torch.argsort(mask_areas(binary) / sides.prod(dim=1))
