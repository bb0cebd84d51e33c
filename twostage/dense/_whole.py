"""What CLIP says of images as wholes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twostage.clip.model import ClipModel
from twostage.dense import _frame
from twostage.types import TextBank


def own_size_logits(
    clip: ClipModel, images: Sequence[Tensor], text: TextBank, chunk: int = 8
) -> list[Tensor]:
    """(K,) logits of each image, squashed to the tower's own size; text: on the tower's device.

    images: RGB uint8 (3, H, W) of any sizes; chunk: images in one pass of the tower.
    """
    shown = [
        _frame.to_pixels(image.to(clip.device), clip.image_size, clip.mean, clip.std) for image in images
    ]
    return [
        logits
        for start in range(0, len(shown), chunk)
        for logits in text.logits(clip.encode_images(torch.stack(shown[start : start + chunk])))
    ]
