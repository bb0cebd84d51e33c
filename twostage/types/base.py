"""What the containers share: the label of nothing, and checks with words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twostage.errors import TwostageError

VOID = -1
"""The label of a pixel that no word claims, in memory. 255 and 65535 exist only inside the file readers."""


class ShapeError(TwostageError):
    """A container was given tensors that do not fit together."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


def require_image(owner: str, image: Tensor | None, classes: int) -> None:
    require(
        image is None or image.shape == (classes,),
        f"{owner}.image: expected ({classes},), got {None if image is None else tuple(image.shape)}",
    )


def row_index(index: Tensor | slice | Sequence[int]) -> Tensor | slice:
    """Anything that picks rows, in the form a tensor understands."""
    if isinstance(index, (slice, Tensor)):
        return index
    return torch.as_tensor(index, dtype=torch.long)
