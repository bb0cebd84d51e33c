"""Places that look alike agree on their logits, once all windows are stitched.

Shapes: T rows of text, H x W pixels as the tower saw them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.label_propagation import propagate
from twostage.ops.pamr import pamr
from twostage.types import TextBank
from twostage.vocabulary import nearest

POSTS = ("none", "pamr", "propagate")


@dataclass(frozen=True)
class PostOptions:
    """post: "pamr" averages places nearby of one colour (Araslanov and Roth, 2020), "propagate" lets sure
    places speak for unsure ones across even colour (PEARL), "none" leaves logits as they are;
    post_iterations: averagings of pamr; post_dilations: distances of its neighbours, pixels; post_grid: cells
    along the longer side for propagate, about. Both see the whole image as the tower does, and come before
    synonyms are joined.
    """

    post: Literal["none", "pamr", "propagate"] = "none"
    post_iterations: int = 10
    post_dilations: tuple[int, ...] = (8, 16)
    post_grid: int = 80


def check(options: PostOptions, logit_factor: float) -> None:
    """Raises: TwostageError: an unknown post, or a number it cannot use."""
    if options.post not in POSTS:
        raise TwostageError(f"ReadoutDense: unknown post {options.post!r}.{nearest(options.post, POSTS)}")
    for name in ("post_iterations", "post_grid"):
        if getattr(options, name) < 1:
            raise TwostageError(f"ReadoutDense: {name} must be at least 1, got {getattr(options, name)}.")
    if not options.post_dilations or min(options.post_dilations) < 1:
        raise TwostageError(
            "ReadoutDense: post_dilations should be distances of 1 pixel or more, as in 8, 16; got "
            f"{tuple(options.post_dilations)}."
        )
    if options.post == "propagate" and not logit_factor > 0:
        raise TwostageError(
            f"ReadoutDense: post 'propagate' needs a logit_factor above 0, got {logit_factor}: it takes the "
            "scale off the cosines and puts it back."
        )


def agreed(options: PostOptions, frame: Tensor, rows: Tensor, text: TextBank, scale: float) -> Tensor:
    """(3, H, W) float and (T, H, W) logits -> (T, H, W) float32, places that look alike agreed.

    scale: what the cosines in the logits were multiplied by.
    """
    if options.post == "pamr":
        rows = pamr(frame[None], rows[None], options.post_iterations, options.post_dilations)[0]
    elif options.post == "propagate":
        rows = propagate(frame[None], rows[None] / scale, text.features, options.post_grid)[0] * scale
    return rows
