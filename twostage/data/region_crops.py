"""From a photo and the mask of one class to the picture that CLIP is shown, for learning and judging prompts.

Two recipes. "fixed" cuts as stage two does at test time: photo at test size, end-exclusive box, mean colour
outside the mask, bicubic squash to CLIP's size; in training the box is varied a little. "paper" repeats what
Xu et al. (ECCV 2022) published, quirks included: boxes that end a pixel early at the right and bottom border,
crops of 244 x 224 in training and of 224 x 224, never resized, at test time, and outside the mask CLIP's mean
put into already normalised pixels, which is not the mean colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from twostage.data.errors import DataError
from twostage.data.transforms import resize_for_test
from twostage.ops.crops import Aspect, Fill, cut_region, make_canvas, resize_region
from twostage.ops.masks import expand_boxes, mask_boxes
from twostage.vocabulary import nearest

MODES = ("fixed", "paper")
PAPER_TRAIN_HW, PAPER_TEST_HW = (244, 224), (224, 224)
PAPER_SCALE, RATIO, TRIES = 0.08, (3 / 4, 4 / 3), 10


class RegionCutter(Protocol):
    """One of the recipes."""

    def at_size(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The photo (3, H, W) uint8 and its labels (H, W) as this recipe looks at them."""
        ...

    def train(self, image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor | None:
        """image: (3, H, W) uint8, mask: (H, W) bool -> (3, h, w) float32; None: nothing is left."""
        ...

    def test(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """The same without chance."""
        ...


@dataclass(frozen=True)
class Look:
    """What CLIP and the evaluation expect of a crop.

    mean, std: of colours in [0, 1]; size_hw: of the crop in pixels; min_size, max_size: edges of a photo at
    test size, 0 keeps it. The others are stage two's options of the same meaning, for the recipe "fixed".
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size_hw: tuple[int, int]
    min_size: int = 0
    max_size: int = 2560
    fill: Fill = "mean"
    aspect: Aspect = "squash"
    antialias: bool = False
    expand: float = 1.0


def make_cutter(mode: str, look: Look, smallest: float = 0.5, flip: float = 0.5) -> RegionCutter:
    """mode: "fixed" or "paper"; smallest: share of the box that a training crop keeps at least (fixed).

    Raises:
        DataError: no such mode.
    """
    if mode not in MODES:
        raise DataError(f"Region crops: unknown mode {mode!r}.{nearest(mode, MODES)}")
    return PaperCrops(look, flip) if mode == "paper" else FixedCrops(look, smallest, flip)


@dataclass(frozen=True)
class FixedCrops:
    """As stage two cuts at test time."""

    look: Look
    smallest: float = 0.5
    flip: float = 0.5

    def at_size(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """At test size; labels by nearest neighbour."""
        small = resize_for_test(image, self.look.min_size, self.look.max_size)
        if small.shape[1:] == labels.shape:
            return small, labels
        fitting = F.interpolate(labels[None, None].float(), size=small.shape[1:], mode="nearest-exact")
        return small, fitting[0, 0].to(labels.dtype)

    def train(self, image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor | None:
        """A part of the box that shows some of the mask, mirrored at random."""
        box = self._box(mask)
        if box is None:
            return None
        x0, y0, x1, y1 = box
        for _ in range(TRIES if self.smallest < 1 else 0):
            top, left, height, width = random_window((y1 - y0, x1 - x0), self.smallest, rng)
            tried = [x0 + left, y0 + top, x0 + left + width, y0 + top + height]
            if mask[tried[1] : tried[3], tried[0] : tried[2]].any():
                box = tried
                break
        crop = self._cut(image, mask, box)
        return crop.flip(-1) if rng.random() < self.flip else crop

    def test(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """The whole box."""
        box = self._box(mask)
        return None if box is None else self._cut(image, mask, box)

    def _box(self, mask: Tensor) -> list[int] | None:
        boxes = expand_boxes(mask_boxes(mask[None]), self.look.expand, (mask.shape[0], mask.shape[1]))
        box: list[int] = boxes[0].tolist()
        return None if box[0] < 0 else box

    def _cut(self, image: Tensor, mask: Tensor, box_xyxy: Sequence[int]) -> Tensor:
        x0, y0, x1, y1 = box_xyxy
        look = self.look
        canvas = make_canvas(image[:, y0:y1, x0:x1], look.mean, look.std, look.fill)
        region = cut_region(canvas, mask[y0:y1, x0:x1], (0, 0, x1 - x0, y1 - y0))
        out = torch.empty(3, *look.size_hw)
        resize_region(region, out, canvas.fill, look.aspect, look.antialias)
        return out


@dataclass(frozen=True)
class PaperCrops:
    """As published."""

    look: Look
    flip: float = 0.5

    def at_size(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they are."""
        return image, labels

    def train(self, image: Tensor, mask: Tensor, rng: np.random.Generator) -> Tensor | None:
        """A random part of the box, stretched to 244 x 224 (Pillow bilinear), mirrored at random."""
        box = _paper_box(mask)
        if box is None:
            return None
        photo, inside = image[:, box[0], box[1]], mask[box[0], box[1]]
        top, left, height, width = random_window((inside.shape[0], inside.shape[1]), PAPER_SCALE, rng)
        window = (slice(top, top + height), slice(left, left + width))
        pixels = _stretched(photo[:, window[0], window[1]].permute(1, 2, 0), Image.Resampling.BILINEAR)
        kept = _stretched(inside[window].to(torch.uint8), Image.Resampling.NEAREST).bool()
        photo = pixels.permute(2, 0, 1)
        if rng.random() < self.flip:
            photo, kept = photo.flip(-1), kept.flip(-1)
        return self._filled(photo, kept)

    def test(self, image: Tensor, mask: Tensor) -> Tensor | None:
        """The centre of the box, 224 x 224 pixels as they are; smaller boxes get zeros around them."""
        box = _paper_box(mask)
        if box is None:
            return None
        photo, kept = image[:, box[0], box[1]], mask[box[0], box[1]][None]
        return self._filled(centred(photo, PAPER_TEST_HW), centred(kept, PAPER_TEST_HW)[0])

    def _filled(self, photo: Tensor, mask: Tensor) -> Tensor | None:
        """Normalised, then the raw mean outside the mask; None where nothing is inside."""
        if not mask.any():
            return None
        mean, std = torch.tensor(self.look.mean).view(3, 1, 1), torch.tensor(self.look.std).view(3, 1, 1)
        return torch.where(mask, (photo / 255.0 - mean) / std, mean)


def random_window(
    size_hw: tuple[int, int], smallest: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a part with `smallest` to all of the area and a ratio of 3/4 to 4/3.

    Ten tries (uniform area, log-uniform ratio of width to height); then the largest centred part of a ratio
    in that range (Szegedy et al., "Going deeper with convolutions", 2015, as commonly done).
    """
    full_height, full_width = size_hw
    for _ in range(TRIES):
        area = full_height * full_width * rng.uniform(smallest, 1.0)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= full_width and 0 < height <= full_height:
            top = int(rng.integers(full_height - height + 1))
            left = int(rng.integers(full_width - width + 1))
            return top, left, height, width
    ratio = min(max(full_width / full_height, RATIO[0]), RATIO[1])
    height = min(full_height, max(1, round(full_width / ratio)))
    width = min(full_width, max(1, round(full_height * ratio)))
    return (full_height - height) // 2, (full_width - width) // 2, height, width


def centred(planes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(C, H, W) -> (C, h, w): the middle, with zeros around where it is smaller."""
    height, width = planes.shape[1:]
    lack = (max(0, size_hw[0] - height), max(0, size_hw[1] - width))
    padding = (lack[1] // 2, lack[1] - lack[1] // 2, lack[0] // 2, lack[0] - lack[0] // 2)
    padded = F.pad(planes, padding)
    top, left = (padded.shape[1] - size_hw[0]) // 2, (padded.shape[2] - size_hw[1]) // 2
    return padded[:, top : top + size_hw[0], left : left + size_hw[1]]


def _paper_box(mask: Tensor) -> tuple[slice, slice] | None:
    """Rows and columns of the tight box, its far ends at most H - 1 and W - 1; None where nothing is left."""
    x0, y0, x1, y1 = mask_boxes(mask[None])[0].tolist()
    if x0 < 0:
        return None
    x1, y1 = min(x1, mask.shape[1] - 1), min(y1, mask.shape[0] - 1)
    return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None


def _stretched(plane: Tensor, how: Image.Resampling) -> Tensor:
    """(h, w[, 3]) uint8 at the paper's training size."""
    height, width = PAPER_TRAIN_HW
    picture = Image.fromarray(np.ascontiguousarray(plane.numpy()))
    return torch.from_numpy(np.array(picture.resize((width, height), how)))
