"""All masks of a photo in one picture: small ones on top of large ones, every outline, the rest grey."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from twostage.data.errors import LabelError
from twostage.ops.masks import binarise
from twostage.types import VOID, Proposals
from twostage.visualize.overlay import Picture, at_viewing_size, pixels, tint
from twostage.visualize.palette import class_colours

_COLOURS = 24


def proposal_overlay(image: Tensor, proposals: Proposals, alpha: float = 0.45) -> Picture:
    """The photo, tinted by its smallest mask at each pixel; every mask is outlined in its own colour.

    image: (3, H, W) uint8 RGB; proposals: masks of the image's size, soft ones cut at 0.5. Pixels of no mask
    are grey. Photos below 512 pixels are enlarged by a whole factor, those above 2048 reduced.

    Raises:
        LabelError: masks of another size than the image.
    """
    photo = pixels(image)
    if len(proposals) and proposals.size_hw != photo.shape[:2]:
        raise LabelError(f"Picture: the image is {photo.shape[:2]} and its proposals {proposals.size_hw}.")
    masks = [binarise(mask, 0.5).numpy() for mask in proposals.masks.detach().cpu()]
    order = sorted(range(len(masks)), key=lambda row: -np.count_nonzero(masks[row]))
    top = np.full(photo.shape[:2], VOID, np.int32)
    for rank, row in enumerate(order):
        top[masks[row]] = rank % _COLOURS
    colours = class_colours([f"mask {number}" for number in range(_COLOURS)])
    picture = tint(at_viewing_size(photo), at_viewing_size(top), colours, alpha)
    thickness = max(round(max(picture.shape[:2]) / 500), 1)
    for rank, row in enumerate(order):
        shown = at_viewing_size(masks[row].astype(np.int32)).astype(np.uint8)
        outlines, _ = cv2.findContours(shown, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        colour = [int(channel) for channel in colours[rank % _COLOURS]]
        cv2.drawContours(picture, outlines, -1, colour, thickness)
    return picture
