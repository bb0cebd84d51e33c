"""Dense CLIP: class logits for every patch, read from a frozen CLIP in one of many published ways.

The way is a preset (`twostage dense list`); any of its knobs can be changed. A ModifiedResNet has one way
only, MaskCLIP's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.clip.towers import POSITION_MODES, is_resnet
from twostage.dense import _frame
from twostage.errors import TwostageError
from twostage.ops.fusion import class_maps
from twostage.ops.windows import Stitcher, window_boxes
from twostage.readout import look as looking
from twostage.readout import presets, resnet
from twostage.readout.engine import Tower, fitted
from twostage.readout.look import Look
from twostage.readout.preset import Preset
from twostage.readout.refine import refined
from twostage.types import TextBank, WordScores
from twostage.vocabulary import nearest

logger = logging.getLogger(__name__)

_CHOICES = {"fit": ("round", "pad", "floor"), "positions": ("", *POSITION_MODES)}
KNOBS = ("attention", "heads", "keys", "residual", "ffn", "positions", "suppress", "class_token")
"""Knobs of a preset that options of the same name replace."""


class ReadoutDense:
    """Class logits for every patch, from one pass over the whole image or the average of sliding windows."""

    @dataclass(frozen=True)
    class Config:
        """What the tower is shown, and how its last block is read.

        preset: the published way to read it (`twostage dense list`). settings: numbers of that preset's own,
        by name. short_edge: pixels of the image's short side before the tower; None: twice the tower's own
        size; 0: as it is. long_edge: pixels that the long side may have at most. antialias: resize smoothly,
        or (False) as OpenCV's INTER_LINEAR, which the public evaluations use. fit: "round" the size to whole
        patches, "pad" with zeros after normalisation and cut the logits, or "floor": leave out what is less
        than a patch. window, stride: edge and step of sliding windows in pixels; 0: the whole image at once;
        stride 0: half a window. scale: factor on cosines, None for the text bank's; logit_factor: a further
        one; dense cosines spread less than those of crops. chunk: images or windows in one pass of the tower.

        The knobs of the preset that can be turned, empty or None for the preset's own: attention, where
        tokens look, written as in "0.5 * qq + 0.5 * [kk + gauss(5)]"; heads: "each" or "mean"; keys: "all" or
        "patches"; residual, ffn: whether the last block adds its input and runs its MLP; positions: how the
        position table is brought to the grid; suppress: blocks whose loudest MLP channel is scaled down;
        class_token: share of the class token added to every patch.
        """

        preset: str = "maskclip"
        settings: Mapping[str, Any] = field(default_factory=dict)
        short_edge: int | None = None
        long_edge: int = 2048
        antialias: bool = True
        fit: _frame.Fit = "round"
        window: int = 0
        stride: int = 0
        scale: float | None = None
        logit_factor: float = 1.0
        chunk: int = 8
        attention: str = ""
        heads: str = ""
        keys: str = ""
        residual: bool | None = None
        ffn: bool | None = None
        positions: str = ""
        suppress: tuple[int, ...] | None = None
        class_token: float | None = None

        def __post_init__(self) -> None:
            _check(self)
            self.chosen()

        def chosen(self) -> Preset:
            """The preset with its settings and knobs changed as asked."""
            found = presets.find(self.preset).with_settings(self.settings)
            changed = {name: getattr(self, name) for name in KNOBS if getattr(self, name) not in ("", None)}
            return replace(found, knobs=replace(found.knobs, **changed))

        def facts(self) -> dict[str, Any]:
            """For results files: how the tower is read, and what resizes the photo."""
            smooth = "antialiased" if self.antialias else "as OpenCV, rounded to grey levels"
            return {**self.chosen().facts(), "resize": f"torch bilinear, {smooth}"}

    def __init__(self, config: Config, clip: ClipModel) -> None:
        """Raises: DenseTowerError: the image tower has no dense readout, or not this one."""
        self.config = config
        self.clip = clip
        self.preset = config.chosen()
        self._resnet = is_resnet(clip.visual)
        if self._resnet:
            resnet.require_preset(self.preset.name)
        else:
            self.tower = Tower(clip.visual)
            self.knobs = fitted(self.preset.knobs, len(self.tower.blocks))
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

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[WordScores]:
        """images: RGB uint8 (3, H, W) of any sizes -> maps of logits each, (K, h, w) of classes and (T, h, w)
        of the bank's rows, covering the whole image.

        They are as coarse as the patches where one grid of them covers the image, else as fine as the
        resized image.
        Logits are cosines times the scale times `logit_factor`.

        Raises:
            TwostageError: an image is not RGB uint8, or the text has another width than the image features.
        """
        self._check_input(images, text)
        text = text.to(self.clip.device)
        maps = self.rows([self._frame(image) for image in images], text)
        return [_scores(rows.to(image.device), text) for rows, image in zip(maps, images, strict=True)]

    def rows(self, frames: list[Tensor], text: TextBank) -> list[Tensor]:
        """frames: (3, H, W) normalised, at the size the tower is to see -> (T, h, w) logits of the bank's
        rows each, of patches or at the frame's own size.
        """
        if self.config.window:
            return [self._windows(frame, text) for frame in frames]
        return self._whole(frames, text)

    def _frame(self, image: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> (3, H', W') normalised, at the size the tower is to see."""
        short = self.config.short_edge
        short = 2 * min(self.clip.image_size) if short is None else short
        size = (image.shape[1], image.shape[2])
        goal = _frame.target_size(size, short, self.config.long_edge, self.cell_hw, self.config.fit)
        own = image.to(self.clip.device)
        return _frame.to_pixels(own, goal, self.clip.mean, self.clip.std, self.config.antialias)

    def _whole(self, frames: list[Tensor], text: TextBank) -> list[Tensor]:
        """One pass an image; images of one size share passes."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, frame in enumerate(frames):
            by_size.setdefault(tuple(frame.shape), []).append(index)
        maps: dict[int, Tensor] = {}
        for indices in by_size.values():
            for start in range(0, len(indices), self.config.chunk):
                part = indices[start : start + self.config.chunk]
                maps.update(zip(part, self._rows(torch.stack([frames[i] for i in part]), text), strict=True))
        return [maps[index] for index in range(len(frames))]

    def _rows(self, pixels: Tensor, text: TextBank) -> Tensor:
        """(B, 3, H, W) normalised -> (B, T, h, w) logits, of the patches where their grid covers it all."""
        read, size, inside = _frame.onto_cells(pixels, self.cell_hw, self.config.fit)
        maps = self.logits(read, text)
        return maps if inside == (0, 0, *size) else _frame.to_full_size(maps, size, inside)

    @torch.no_grad()
    def logits(self, pixels: Tensor, text: TextBank) -> Tensor:
        """(B, 3, H, W) normalised, H and W multiples of a patch -> (B, T, h', w') float32 of the bank's
        rows.
        """
        scale = text.logit_scale if self.config.scale is None else self.config.scale
        scale = scale * self.config.logit_factor
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
        )
        return looking.logits(self.preset.method, look)

    def _of_resnet(self, pixels: Tensor, text: Tensor, scale: float) -> Tensor:
        visual = self.clip.visual
        last = resnet.last_map(visual, pixels)
        rows, grid = resnet.place_features(visual, last)
        scores = F.normalize(rows.float(), dim=-1) @ text.T
        keys = lambda: resnet.place_keys(visual, last)
        return looking.on_grid(refined(scores, keys, self.preset.settings, scale), grid)

    def _windows(self, frame: Tensor, text: TextBank) -> Tensor:
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
            read, full, inside = _frame.onto_cells(crops, self.cell_hw, config.fit)
            maps = _frame.to_full_size(self.logits(read, text), full, inside)
            for box, values in zip(part, maps, strict=True):
                stitcher.add(box, values)
        return stitcher.result()

    def _check_input(self, images: Sequence[Tensor], text: TextBank) -> None:
        if text.dim != self.clip.dim:
            raise TwostageError(
                f"ReadoutDense: expected text features {self.clip.dim} wide, got {text.dim}."
                f" Make them with the text tower of {self.clip.name}, which reads the image."
            )
        for position, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise TwostageError(
                    f"ReadoutDense: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)}"
                    f" {image.dtype}; give it before any normalisation."
                )


def _scores(rows: Tensor, text: TextBank) -> WordScores:
    """(T, h, w) maps of the bank's rows, and of the classes."""
    class_of = text.class_of.to(rows.device)
    return WordScores(class_maps(rows[None], class_of, text.num_classes)[0], rows, class_of)


def _check(config: ReadoutDense.Config) -> None:
    for option, allowed in _CHOICES.items():
        value = getattr(config, option)
        if value not in allowed:
            raise TwostageError(f"ReadoutDense: unknown {option} {value!r}.{nearest(str(value), allowed)}")
    least = {"short_edge": 0, "long_edge": 1, "window": 0, "stride": 0, "chunk": 1}
    for option, bound in least.items():
        value = getattr(config, option)
        if value is not None and value < bound:
            raise TwostageError(f"ReadoutDense: {option} must be at least {bound}, got {value}.")
    if config.scale is not None and not config.scale > 0:
        raise TwostageError(f"ReadoutDense: scale must be above 0, got {config.scale}.")
    if config.window and config.stride > config.window:
        raise TwostageError(
            f"ReadoutDense: stride {config.stride} leaves gaps between windows of {config.window}."
        )
