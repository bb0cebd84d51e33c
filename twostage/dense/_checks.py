"""What a dense readout is given, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from twostage.clip.towers import POSITION_MODES
from twostage.errors import TwostageError
from twostage.readout.guest import FORMS
from twostage.readout.preset import Preset
from twostage.types import Proposals, TextBank
from twostage.vocabulary import nearest

_CHOICES = {"fit": ("round", "pad", "floor"), "positions": ("", *POSITION_MODES)}


def options(config: Any) -> None:
    """Choices in words, lower bounds of numbers, and windows without gaps.

    Raises:
        TwostageError: with the option, its value and what is allowed.
    """
    for option, allowed in _CHOICES.items():
        value = getattr(config, option)
        if value not in allowed:
            raise TwostageError(f"ReadoutDense: unknown {option} {value!r}.{nearest(str(value), allowed)}")
    least = {"short_edge": 0, "long_edge": 1, "window": 0, "stride": 0, "chunk": 1}
    for option, bound in least.items():
        value = getattr(config, option)
        if value is not None and value < bound:
            raise TwostageError(f"ReadoutDense: {option} must be at least {bound}, got {value}.")
    if config.scale is not None and not config.scale > 0:
        raise TwostageError(f"ReadoutDense: scale must be above 0, got {config.scale}.")
    if config.window and config.stride > config.window:
        raise TwostageError(
            f"ReadoutDense: stride {config.stride} leaves gaps between windows of {config.window}."
        )


def guest(name: str, preset: Preset) -> None:
    """A guest where the preset asks one, and only there.

    Raises:
        TwostageError: it is missing, or nobody asks it.
    """
    if preset.guest and not name:
        raise TwostageError(
            f"ReadoutDense: preset {preset.name} asks a second vision model, and guest is empty: set it to "
            f"{FORMS}."
        )
    if name and not preset.guest:
        raise TwostageError(
            f"ReadoutDense: preset {preset.name} asks no second vision model, got guest {name!r}: leave it "
            "empty, or choose a preset with a guest, such as proxyclip."
        )


def text(bank: TextBank, dim: int, model: str) -> None:
    """Raises: TwostageError: the text has another width than the image features."""
    if bank.dim != dim:
        raise TwostageError(
            f"ReadoutDense: expected text features {dim} wide, got {bank.dim}."
            f" Make them with the text tower of {model}, which reads the image."
        )


def images(given: Sequence[Tensor]) -> None:
    """Raises: TwostageError: an image is not RGB uint8."""
    for position, image in enumerate(given):
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise TwostageError(
                f"ReadoutDense: image {position} should be RGB uint8 (3, H, W), got {tuple(image.shape)}"
                f" {image.dtype}; give it before any normalisation."
            )


def masks(proposals: Sequence[Proposals] | None, given: Sequence[Tensor], preset: Preset) -> list[Tensor]:
    """(N, H, W) masks of each image.

    Raises:
        TwostageError: there are none, not one set an image, or of another size than the image.
    """
    if proposals is None or len(proposals) != len(given):
        got = "none" if proposals is None else f"{len(proposals)} for {len(given)} images"
        raise TwostageError(
            f"ReadoutDense: preset {preset.name} looks along stage one's masks, a set an image, got {got}: "
            "set PROPOSALS.NAME, or choose a preset without regions."
        )
    for position, (image, own) in enumerate(zip(given, proposals, strict=True)):
        if own.size_hw != tuple(image.shape[1:]):
            raise TwostageError(
                f"ReadoutDense: image {position} is {tuple(image.shape[1:])} pixels, its masks {own.size_hw}:"
                " give masks of the size of the image."
            )
    return [own.masks for own in proposals]
