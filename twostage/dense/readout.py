"""Dense CLIP: class logits for every patch, read from a frozen CLIP in one of many published ways.

The way is a preset (`twostage dense list`); any of its knobs can be changed. A ModifiedResNet has one way
only, MaskCLIP's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.clip.towers import is_resnet
from twostage.dense import _checks, _frame, _post
from twostage.dense._options import ReadoutOptions
from twostage.dense._whole import own_size_logits
from twostage.ops.fusion import class_maps
from twostage.ops.windows import Stitcher, window_boxes
from twostage.readout import guest as guests
from twostage.readout import look as looking
from twostage.readout import resnet
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Guest, Look
from twostage.readout.refine import refined
from twostage.types import Proposals, TextBank, WordScores

logger = logging.getLogger(__name__)
Masks = list[Tensor] | None
"""(N, H, W) masks of each image, where the preset looks along them."""


class ReadoutDense:
    """Class logits for every patch, from one pass over the whole image or the average of sliding windows."""

    Config = ReadoutOptions

    def __init__(self, config: ReadoutOptions, clip: ClipModel) -> None:
        """Raises: DenseTowerError: the image tower has no dense readout, or not this one."""
        self.config = config
        self.clip = clip
        self.preset = config.chosen()
        self.guest: Guest | None = None
        self._resnet = is_resnet(clip.visual)
        if self._resnet:
            resnet.require_preset(self.preset.name)
        else:
            self.tower = Tower(clip.visual)
            self.knobs = fitted(self.preset.knobs, len(self.tower.blocks))
            self.guest = guests.load(config.guest, self.tower, clip.mean, clip.std) if config.guest else None
            logger.info("Dense readout %s: attention %s", self.preset.name, self.knobs.attention)

    @classmethod
    def tiny(cls) -> ReadoutDense:
        """The smallest shipped ViT with random weights."""
        return cls(cls.Config(), ClipModel.load("twostage-mini-vit", "random", seed=0))

    @property
    def cell_hw(self) -> tuple[int, int]:
        """Height and width in pixels of one place of the tower's grid."""
        if self._resnet:
            return 32, 32
        return self.tower.cell_hw

    @property
    def wants_regions(self) -> bool:
        """Whether `predict` has to be given the masks of stage one."""
        return self.preset.regions

    @torch.no_grad()
    def predict(
        self, images: Sequence[Tensor], text: TextBank, proposals: Sequence[Proposals] | None = None
    ) -> list[WordScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> maps of logits each, (K, h, w) of classes and (T, h, w)
        of the bank's rows, covering the whole image. proposals: one an image, masks of its size, for presets
        that look along them.

        They are as coarse as the patches where one grid of them covers the image, else as fine as the
        resized image. Logits are cosines times the scale times `logit_factor`.

        Raises:
            TwostageError: an image is not RGB uint8, the text has another width than the image features, or
                masks are missing or of another size.
        """
        _checks.text(text, self.clip.dim, self.clip.name)
        _checks.images(images)
        masks = _checks.masks(proposals, images, self.preset) if self.wants_regions else None
        text = text.to(self.clip.device)
        maps = self.rows([self._frame(image) for image in images], text, masks)
        wholes: list[Tensor | None] = [None] * len(images)
        if self.config.image:
            seen = own_size_logits(self.clip, images, text, self.config.chunk)
            wholes = [one / text.logit_scale * self._scale(text) for one in seen]
        return [
            _scores(rows, text, whole).to(image.device)
            for rows, whole, image in zip(maps, wholes, images, strict=True)
        ]

    def rows(self, frames: list[Tensor], text: TextBank, masks: Masks = None) -> list[Tensor]:
        """frames: (3, H, W) normalised, at the size the tower is to see -> (T, h, w) logits of the bank's
        rows each, of patches or at the frame's own size. masks: of each image, at any size.
        """
        if masks is not None:
            sizes = [(frame.shape[1], frame.shape[2]) for frame in frames]
            pairs = zip(masks, sizes, strict=True)
            masks = [_frame.to_masks(one, size, self.clip.device) for one, size in pairs]
        if self.config.window:
            maps = [self._windows(f, text, None if masks is None else masks[i]) for i, f in enumerate(frames)]
        else:
            maps = self._whole(frames, text, masks)
        if self.config.post == "none":
            return maps
        return [self._agreed(frame, rows, text) for frame, rows in zip(frames, maps, strict=True)]

    def _agreed(self, frame: Tensor, rows: Tensor, text: TextBank) -> Tensor:
        """(T, H, W) at the frame's size, after the post-processing that is on."""
        size = (frame.shape[1], frame.shape[2])
        full = F.interpolate(rows[None], size, mode="bilinear", align_corners=False)[0]
        return _post.agreed(self.config, frame, full, text, self._scale(text))

    def _scale(self, text: TextBank) -> float:
        scale = text.logit_scale if self.config.scale is None else self.config.scale
        return scale * self.config.logit_factor

    def _frame(self, image: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> (3, H', W') normalised, at the size the tower is to see."""
        short = self.config.short_edge
        short = 2 * min(self.clip.image_size) if short is None else short
        size = (image.shape[1], image.shape[2])
        goal = _frame.target_size(size, short, self.config.long_edge, self.cell_hw, self.config.fit)
        own = image.to(self.clip.device)
        return _frame.to_pixels(own, goal, self.clip.mean, self.clip.std, self.config.antialias)

    def _whole(self, frames: list[Tensor], text: TextBank, masks: Masks) -> list[Tensor]:
        """One pass an image; images of one size share passes."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_size.setdefault(tuple(frame.shape), []).append(index)
        maps: dict[int, Tensor] = {}
        for indices in by_size.values():
            for start in range(0, len(indices), self.config.chunk):
                part = indices[start : start + self.config.chunk]
                own = None if masks is None else [masks[i] for i in part]
                maps.update(
                    zip(part, self._rows(torch.stack([frames[i] for i in part]), text, own), strict=True)
                )
        return [maps[index] for index in range(len(frames))]

    def _rows(self, pixels: Tensor, text: TextBank, masks: Masks, full: bool = False) -> Tensor:
        """(B, 3, H, W) normalised -> (B, T, h, w) logits, of the patches where their grid covers it all, or
        (`full`) always at H x W.
        """
        read, size, inside = _frame.onto_cells(pixels, self.cell_hw, self.config.fit)
        masks = _frame.pad_masks(masks, (read.shape[-2], read.shape[-1]), inside)
        maps = self.logits(read, text, masks)
        return maps if inside == (0, 0, *size) and not full else _frame.to_full_size(maps, size, inside)

    @torch.no_grad()
    def logits(self, pixels: Tensor, text: TextBank, masks: Masks = None) -> Tensor:
        """(B, 3, H, W) normalised, H and W multiples of a patch -> (B, T, h', w') float32 of the bank's rows.

        masks: (N, H, W) of each image, where the preset looks along them.
        """
        scale = self._scale(text)
        pixels = pixels.to(self.clip.device, self.clip.dtype)
        if self._resnet:
            return self._of_resnet(pixels, text.features, scale)
        look = Look(
            self.tower,
            self.knobs,
            pixels,
            text.features,
            scale,
            self.preset.settings,
            self.clip.mean,
            self.clip.std,
            self.guest,
            masks,
            class_of=text.class_of,
        )
        return looking.logits(self.preset.method, look)

    def _of_resnet(self, pixels: Tensor, text: Tensor, scale: float) -> Tensor:
        visual = self.clip.visual
        last = resnet.last_map(visual, pixels)
        rows, grid = resnet.place_features(visual, last)
        scores = F.normalize(rows.float(), dim=-1) @ text.T
        keys = lambda: resnet.place_keys(visual, last)
        return looking.on_grid(refined(scores, keys, self.preset.settings, scale), grid)

    def _windows(self, frame: Tensor, text: TextBank, masks: Tensor | None) -> Tensor:
        """(3, H, W) normalised -> (T, H, W) logits: the mean over all windows that see a pixel, each brought
        to its pixels first (bilinear).
        """
        config = self.config
        size = (frame.shape[1], frame.shape[2])
        stride = config.stride or max(1, config.window // 2)
        boxes = window_boxes(size, (config.window, config.window), (stride, stride))
        stitcher = Stitcher(len(text.features), size, frame.device)
        for start in range(0, len(boxes), config.chunk):
            part = boxes[start : start + config.chunk]
            crops = torch.stack([frame[:, top:bottom, left:right] for top, left, bottom, right in part])
            own = None if masks is None else [masks[:, t:b, l:r] for t, l, b, r in part]  # noqa: E741
            for box, values in zip(part, self._rows(crops, text, own, full=True), strict=True):
                stitcher.add(box, values)
        return stitcher.result()


def _scores(rows: Tensor, text: TextBank, image: Tensor | None) -> WordScores:
    """(T, h, w) maps of the bank's rows, and of the classes; image: (K,) of the whole, or None."""
    logits = class_maps(rows[None], text.class_of, text.num_classes)[0]
    return WordScores(logits, logits if len(logits) == len(rows) else rows, text.class_of, image=image)
