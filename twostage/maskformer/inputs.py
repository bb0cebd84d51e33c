"""From photos of any sizes to one normalised batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from twostage.maskformer.config import MaskFormerError


def padded_batch(images: Tensor | Sequence[Tensor], mean: Tensor, std: Tensor, step: int) -> Tensor:
    """RGB, 0..255, uint8 or float -> (B, 3, H', W') float32, normalised, padded right and below by 0.

    images: (B, 3, H, W), or a sequence of (3, H, W) whose sizes may differ; mean, std: (3, 1, 1), on the
    device and in the format of the result; H' and W' are the smallest multiples of `step` that hold every
    image.

    Raises:
        MaskFormerError: no image, or one that is not RGB.
    """
    items = list(images)
    if not items or any(image.ndim != 3 or len(image) != 3 for image in items):
        shape = tuple(images.shape) if isinstance(images, Tensor) else [tuple(i.shape) for i in items]
        raise MaskFormerError(f"MaskFormer: expected RGB images (B, 3, H, W), got {shape}.")
    height, width = (-(-max(image.shape[axis] for image in items) // step) * step for axis in (1, 2))
    batch = mean.new_zeros(len(items), 3, height, width)
    for place, image in zip(batch, items, strict=True):
        values = image.to(batch.device, batch.dtype)
        place[:, : image.shape[1], : image.shape[2]] = (values - mean) / std
    return batch
