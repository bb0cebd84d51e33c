"""A label map laid over its photo, at a size that people can look at, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.types import VOID
from twostage.visualize.legend import key_of, with_legend
from twostage.visualize.palette import VOID_COLOUR
from twostage.vocabulary import Vocabulary

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB, as image files and windows want it."""

SMALLEST_LONG_EDGE = 512
LARGEST_LONG_EDGE = 2048


def overlay(
    image: Tensor,
    labels: Tensor | NDArray[np.integer],
    vocabulary: Vocabulary | Sequence[str],
    alpha: float = 0.55,
    legend: bool = True,
) -> Picture:
    """The photo tinted with the colour of each pixel's class, borders drawn, classes listed with their
    shares.

    image: (3, H, W) uint8 RGB; labels: (H, W) integers, position in the vocabulary or -1 (shown grey);
    alpha: 0 shows the photo, 1 the colours alone. Photos below 512 pixels are enlarged by a whole factor,
    those above 2048 reduced; the legend comes on top of that size.

    Raises:
        LabelError: labels of another size than the image, or outside the vocabulary.
    """
    names = shown_names(vocabulary)
    photo, label_map = pixels(image), checked_labels(labels, image, len(names))
    colours, entries = key_of([label_map], names)
    picture = tint(at_viewing_size(photo), at_viewing_size(label_map), colours, alpha)
    return with_legend(picture, entries) if legend else picture


def shown_names(vocabulary: Vocabulary | Sequence[str]) -> tuple[str, ...]:
    """One name a class."""
    return vocabulary.shown if isinstance(vocabulary, Vocabulary) else tuple(vocabulary)


def pixels(image: Tensor) -> Picture:
    """(3, H, W) uint8 tensor on any device -> (H, W, 3) uint8.

    Raises:
        LabelError: another shape or type.
    """
    if image.ndim != 3 or image.shape[0] != 3 or str(image.dtype) != "torch.uint8" or image.numel() == 0:
        raise LabelError(f"Picture: expected RGB uint8 (3, H, W), got {tuple(image.shape)} {image.dtype}.")
    return np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy())


def checked_labels(labels: Tensor | NDArray[np.integer], image: Tensor, count: int) -> NDArray[np.int32]:
    """The label map as (H, W) int32, of the image's size and within -1..count-1."""
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.shape != tuple(image.shape[-2:]) or array.size == 0:
        raise LabelError(f"Picture: the image is {tuple(image.shape[-2:])} and its label map {array.shape}.")
    if array.dtype.kind not in "iu" or array.min() < VOID or array.max() >= count:
        raise LabelError(
            f"Picture: expected integer labels {VOID}..{count - 1} for {count} names, got {array.min()}.."
            f"{array.max()} ({array.dtype})."
        )
    return array.astype(np.int32)


def at_viewing_size(array: NDArray) -> NDArray:
    """A photo (H, W, 3) uint8 or label map (H, W) int32, enlarged or reduced; labels are never mixed."""
    height, width = array.shape[:2]
    longest = max(height, width)
    is_photo = array.ndim == 3
    if longest < SMALLEST_LONG_EDGE:
        factor = -(-SMALLEST_LONG_EDGE // longest)
        size = (width * factor, height * factor)
        return cv2.resize(array, size, interpolation=cv2.INTER_CUBIC if is_photo else cv2.INTER_NEAREST)
    if longest > LARGEST_LONG_EDGE:
        ratio = LARGEST_LONG_EDGE / longest
        size = (max(round(width * ratio), 1), max(round(height * ratio), 1))
        return cv2.resize(array, size, interpolation=cv2.INTER_AREA if is_photo else cv2.INTER_NEAREST)
    return array


def tint(photo: Picture, labels: NDArray[np.int32], colours: NDArray[np.uint8], alpha: float) -> Picture:
    """Photo (H, W, 3) and labels (H, W) of one size -> the blended picture with white borders between
    labels.
    """
    table = np.concatenate([colours, np.array([VOID_COLOUR], np.uint8)]).astype(np.float32)
    base = photo.astype(np.float32)
    void = labels == VOID
    base[void] = base[void].mean(axis=-1, keepdims=True)
    blended = base * (1 - alpha) + table[labels] * alpha
    lines = borders(labels, max(round(max(labels.shape) / 800), 1))
    blended[lines] = 0.25 * blended[lines] + 0.75 * 255
    return np.asarray(np.clip(np.rint(blended), 0, 255), np.uint8)


def borders(labels: NDArray[np.int32], thickness: int) -> NDArray[np.bool_]:
    """(H, W) bool, pixels next to another label; wider lines grow to both sides."""
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    if thickness > 1:
        kernel = np.ones((thickness, thickness), np.uint8)
        edge = cv2.dilate(edge.astype(np.uint8), kernel).astype(bool)
    return edge
