"""What classifiers that look at whole images share: the check of what they are given, and which images go
through the tower together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.errors import TwostageError
from twostage.types import Proposals, TextBank


def check_pairs(who: str, images: Sequence[Tensor], proposals: Sequence[Proposals]) -> None:
    """One Proposals an image, of its size.

    Raises:
        TwostageError: they do not fit together, or an image is not RGB uint8.
    """
    if len(images) != len(proposals):
        raise TwostageError(
            f"{who}: expected one Proposals an image, got {len(proposals)} for {len(images)}."
        )
    for position, (image, found) in enumerate(zip(images, proposals, strict=True)):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise TwostageError(
                f"{who}: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)} "
                f"{image.dtype}; give it before any normalisation."
            )
        if len(found) and found.size_hw != tuple(image.shape[1:]):
            raise TwostageError(
                f"{who}: the masks of image {position} are {found.size_hw}, the image is "
                f"{tuple(image.shape[1:])}; resize the masks to the image first."
            )


def check_text(who: str, clip: ClipModel, text: TextBank) -> None:
    """Text features as wide as the image tower's.

    Raises:
        TwostageError: they are not.
    """
    if text.dim != clip.dim:
        raise TwostageError(
            f"{who}: expected text features {clip.dim} wide, got {text.dim}. Make them with the text tower "
            f"of {clip.name}, which reads the image."
        )


def size_for(
    image: Tensor, clip: ClipModel, short_edge: int | None, long_edge: int, cell_hw: tuple[int, int]
) -> tuple[int, int]:
    """The size in pixels, whole cells, at which a tower looks at an image (3, H, W). short_edge: None takes
    twice the tower's own size, 0 leaves the image as it is.
    """
    short = 2 * min(clip.image_size) if short_edge is None else short_edge
    return _frame.target_size((image.shape[1], image.shape[2]), short, long_edge, cell_hw, "round")


def batches(
    images: Sequence[Tensor], sizes_hw: Sequence[tuple[int, int]], clip: ClipModel, chunk: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Images of one size together, at most `chunk` of them.

    images: RGB uint8 (3, H, W); sizes_hw: what each is resized to. Yields their positions, and (B, 3, h, w)
    pixels, normalised, on the tower's device and in its dtype.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes_hw):
        by_size.setdefault(size, []).append(index)
    for size, indices in by_size.items():
        for start in range(0, len(indices), chunk):
            part = indices[start : start + chunk]
            pixels = [
                _frame.to_pixels(images[index].to(clip.device), size, clip.mean, clip.std) for index in part
            ]
            yield part, torch.stack(pixels).to(clip.dtype)


def unit(rows: Tensor) -> Tensor:
    """(n, D) -> (n, D) float32 rows of length one."""
    return F.normalize(rows.float(), dim=-1)
