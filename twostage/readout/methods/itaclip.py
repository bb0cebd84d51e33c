"""ITACLIP: self-correlations of three earlier blocks join the last one's; the image may be seen in five ways.

Shapes: B images, H x W pixels, N patches.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout.knobs import Knobs
from twostage.readout.look import Look, on_grid, single
from twostage.readout.preset import Preset, figures

BLUR_REACH, BLUR_SIGMA = 5, 5.0
"""Reach and standard deviation of the blur, in pixels: 11 taps."""
_GREY = (0.2989, 0.587, 0.114)


def itaclip(look: Look) -> Tensor:
    """One reading, or with views "ensemble" five: of the image, of it in grey, of it blurred, and of its two
    mirror images.

    Unit features of the first three are averaged as they are; what they say has the weight image_weight, the
    mean of the mirror images, turned back, the rest.

    Raises:
        TwostageError: image_weight is not in [0, 1].
    """
    weight = look.settings["image_weight"]
    if not 0 <= weight <= 1:
        raise TwostageError(f"ITACLIP: image_weight is a share and should be in 0..1, got {weight}.")
    if look.settings["views"] == "single":
        return single(look)
    readings = [
        replace(look, pixels=one).read() for one in (look.pixels, grey(look.pixels), blurred(look.pixels))
    ]
    unit = torch.stack([reading.unit for reading in readings]).mean(dim=0)
    upright = on_grid(unit @ look.text.T * look.scale, readings[0].grid)
    mirrored = [single(replace(look, pixels=look.pixels.flip(axis))).flip(axis) for axis in (2, 3)]
    mixed: Tensor = weight * upright + (1 - weight) * (mirrored[0] + mirrored[1]) / 2
    return mixed


def grey(pixels: Tensor) -> Tensor:
    """(B, 3, H, W), normalised -> the same in grey: the luminance (ITU-R 601) of the normalised colours."""
    weights = pixels.new_tensor(_GREY)[:, None, None]
    return (pixels * weights).sum(dim=1, keepdim=True).expand_as(pixels)


def blurred(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> the same under a Gaussian, mirrored at the border; its reach is shorter where an image
    has fewer pixels.
    """
    found = pixels.float().flatten(0, 1)[:, None]
    for axis in (2, 3):
        reach = min(BLUR_REACH, found.shape[axis] - 1)
        taps = torch.arange(-reach, reach + 1, device=pixels.device)
        kernel = torch.exp(-0.5 * (taps / BLUR_SIGMA) ** 2)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        found = F.conv2d(F.pad(found, pad, mode="reflect"), (kernel / kernel.sum()).reshape(shape))
    return found.reshape(pixels.shape).to(pixels.dtype)


PRESETS = (
    Preset(
        "itaclip",
        "ITACLIP",
        "ITACLIP: Boosting Training-Free Semantic Segmentation with Image, Text, and Architectural "
        "Enhancements; Aydin et al.; 2024",
        Knobs(attention="0.5 * qq + 0.5 * kk + 0.5 * captured_csa(6, 7, 9)", ffn=False),
        method=itaclip,
        settings={"views": "single", "image_weight": 0.75},
        choices={"views": ("single", "ensemble")},
        published=figures(67.9, 37.5, 37.7, None, None, 27.0, 40.2, None),
        note=(
            "figures with views 'ensemble', definitions and synonyms mixed into the text, windows 28 pixels "
            "apart, PAMR and a closing of the labels"
        ),
    ),
)
