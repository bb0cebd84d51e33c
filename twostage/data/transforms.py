"""Geometry and colour of training crops and test images: resize, crop, colour, flip, pad, in this order.

The recipe is the usual one of MaskFormer-style training (short edge at random, SSD colour distortion: Liu et
al., "SSD: Single Shot MultiBox Detector", 2016). All chance comes from the generator given: same state, same
bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from twostage.data.errors import DataError
from twostage.data.sample import Sample
from twostage.types import VOID


@dataclass(frozen=True)
class TrainTransformConfig:
    """Knobs of the training crops; defaults are the paper's for COCO-Stuff; VOC: max_size 2048, crops of 512.

    short_edges: pixels, one is drawn for each image; max_size: limit of the long edge after resizing, pixels;
    crop_size_hw: of the crop, pixels, smaller images are padded to it; flip: probability of mirroring;
    colour: whether colours are distorted, each of four ways with probability colour_chance: brightness adds
    up to +-brightness (of 255), contrast and saturation multiply by a factor in their range, hue turns by
    up to +-hue (of 180 steps, two degrees each); pad_value: grey level of the padding.
    """

    short_edges: tuple[int, ...] = tuple(range(320, 961, 64))
    max_size: int = 2560
    crop_size_hw: tuple[int, int] = (640, 640)
    flip: float = 0.5
    colour: bool = True
    colour_chance: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18
    pad_value: int = 128

    def __post_init__(self) -> None:
        if not self.short_edges or min(self.short_edges) < 1:
            raise DataError(f"short_edges: expected one or more sizes in pixels, got {self.short_edges}.")
        if self.max_size < 1 or min(self.crop_size_hw) < 1:
            raise DataError(
                f"max_size and crop_size_hw: expected pixels, got {self.max_size} and {self.crop_size_hw}."
            )
        for name in ("flip", "colour_chance"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"{name}: expected a probability, got {getattr(self, name)}.")


def to_training(
    sample: Sample, config: TrainTransformConfig, generator: np.random.Generator, class_map: Tensor
) -> tuple[Tensor, Tensor]:
    """One crop of config.crop_size_hw: image (3, h, w) uint8 and labels (h, w) int64.

    class_map: (K,) int64, the training class of each class of the data set, VOID for those that must not be
    learned.

    Raises:
        DataError: the sample has no labels.
    """
    if sample.labels is None:
        raise DataError(
            f"{sample.source or sample.image_id}: training needs labels, but this image has none."
        )
    image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
    labels = _renamed(sample.labels, class_map).numpy()
    short_edge = config.short_edges[int(generator.integers(len(config.short_edges)))]
    size_hw = resized_hw(labels.shape[0], labels.shape[1], short_edge, config.max_size)
    image, labels = _resize(image, size_hw, Image.Resampling.BILINEAR), _resize_labels(labels, size_hw)
    window = _random_window(size_hw, config.crop_size_hw, generator)
    image, labels = image[window], labels[window]
    if config.colour:
        image = distort_colours(image, config, generator)
    if generator.random() < config.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    height, width = labels.shape
    margin = ((0, config.crop_size_hw[0] - height), (0, config.crop_size_hw[1] - width))
    image = np.pad(image, (*margin, (0, 0)), constant_values=config.pad_value)
    labels = np.pad(labels, margin, constant_values=VOID)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(labels.astype(np.int64))


def resize_for_test(image: Tensor, min_size: int, max_size: int) -> Tensor:
    """RGB uint8 (3, H, W) with its short edge at min_size pixels, or its long edge at max_size
    if that is smaller; min_size 0 keeps the size.
    """
    if min_size == 0:
        return image
    height, width = image.shape[1:]
    array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    resized = _resize(array, resized_hw(height, width, min_size, max_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(resized).permute(2, 0, 1).contiguous()


def resized_hw(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """Height and width, pixels: the short edge as asked, the long edge at most max_size; halves round up."""
    scale = short_edge / min(height, width)
    new_height, new_width = (short_edge, scale * width) if height < width else (scale * height, short_edge)
    if max(new_height, new_width) > max_size:
        shrink = max_size / max(new_height, new_width)
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def distort_colours(
    image: np.ndarray, config: TrainTransformConfig, generator: np.random.Generator
) -> np.ndarray:
    """(H, W, 3) uint8 RGB: brightness, then contrast either before or after saturation and hue.

    Every step that happens ends in 0..255 and whole numbers, rounded down, as eight-bit images are edited.
    """

    def happens() -> bool:
        return bool(generator.random() < config.colour_chance)

    def contrast(pixels: np.ndarray) -> np.ndarray:
        return _scaled(pixels, generator.uniform(*config.contrast), 0.0) if happens() else pixels

    if happens():
        image = _scaled(image, 1.0, generator.uniform(-config.brightness, config.brightness))
    contrast_first = bool(generator.random() < 0.5)
    if contrast_first:
        image = contrast(image)
    if happens():
        image = _in_hsv(image, saturation=generator.uniform(*config.saturation), hue=0)
    if happens():
        image = _in_hsv(image, saturation=1.0, hue=int(generator.integers(-config.hue, config.hue + 1)))
    return image if contrast_first else contrast(image)


def _scaled(values: np.ndarray, factor: float, offset: float) -> np.ndarray:
    edited: np.ndarray = np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)
    return edited


def _in_hsv(image: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    """Saturation multiplied and hue turned, both on OpenCV's 8-bit scale (hue 0..179)."""
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + hue) % 180
    hsv[..., 1] = _scaled(hsv[..., 1], saturation, 0.0)
    rgb: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return rgb


def _renamed(labels: Tensor, class_map: Tensor) -> Tensor:
    """labels (H, W) through class_map, VOID staying VOID, int32."""
    table = torch.cat([class_map, torch.tensor([VOID])])  # index -1 picks the last row
    return table[labels.long()].to(torch.int32)


def _random_window(
    size_hw: tuple[int, int], crop_hw: tuple[int, int], generator: np.random.Generator
) -> tuple[slice, slice]:
    height, width = min(size_hw[0], crop_hw[0]), min(size_hw[1], crop_hw[1])
    top = int(generator.integers(size_hw[0] - height + 1))
    left = int(generator.integers(size_hw[1] - width + 1))
    return slice(top, top + height), slice(left, left + width)


def _resize(image: np.ndarray, size_hw: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((size_hw[1], size_hw[0]), how))


def _resize_labels(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return _resize(labels.astype(np.int32), size_hw, Image.Resampling.NEAREST)
