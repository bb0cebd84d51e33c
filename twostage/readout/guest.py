"""Guests: second vision models whose features tell which patches belong together, while CLIP gives the words.

A guest is a function from RGB to features, so any model will do. Some come from an option, written as

    your.package:function                   a function of your own
    timm:vit_base_patch8_224.dino           timm's model with timm's weights, from its cache or its network
    timm:vit_base_patch8_224.dino@FILE      the same with weights of a local file
    clip                                    the CLIP tower's own last keys

"clip" is a stand-in that needs no weights beside CLIP's, so that everything runs without a download; it is no
published method.

Shapes: B images, H x W pixels, h x w grid of the guest's own, C channels, m heads of C / m channels.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twostage.errors import TwostageError
from twostage.readout import vit
from twostage.readout.engine import Tower
from twostage.readout.look import Guest, Look
from twostage.readout.record import Wanted, run_early
from twostage.vocabulary import nearest

FORMS = "'clip', 'timm:MODEL', 'timm:MODEL@FILE' or 'your.package:function'"


class GuestError(TwostageError):
    """A guest cannot be had, or its features are not what a guest gives."""


def load(name: str, tower: Tower, mean: Sequence[float], std: Sequence[float]) -> Guest:
    """The guest of an option (see the module). tower, mean, std: CLIP's, for the stand-in and the device.

    Raises:
        GuestError: not written as one of the forms, not installed, no such model or file, or weights that do
            not fit.
    """
    if name == "clip":
        return _ClipKeys(tower, mean, std)
    kind, colon, rest = name.partition(":")
    if not colon or not kind or not rest:
        raise GuestError(f"Guest {name!r}: expected {FORMS}.{nearest(name, ('clip', 'timm:MODEL'))}")
    if kind == "timm":
        from twostage.readout.timm_guest import TimmGuest

        return TimmGuest(rest, tower.visual.class_embedding.device)
    return _own(name, kind, rest)


def features(look: Look) -> Tensor:
    """What the guest of a look says of its pixels: (B, m, C, h, w) float32, one head where it has none.

    Raises:
        GuestError: there is no guest, or it does not give (B, C, h, w) or (B, m, C, h, w).
    """
    if look.guest is None:
        raise GuestError(
            f"The method needs a second vision model, and was given none: name a guest, {FORMS}."
        )
    found: Any = look.guest(look.rgb)
    if not isinstance(found, Tensor) or found.ndim not in (4, 5) or len(found) != len(look.pixels):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        count = len(look.pixels)
        raise GuestError(
            f"Guest: expected features ({count}, C, h, w), or ({count}, heads, C, h, w), got {got}."
            " Give one map an image, channels before rows and columns."
        )
    maps: Tensor = found.to(look.pixels.device).float()
    return maps if maps.ndim == 5 else maps[:, None]


def resized(found: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, m, C, h, w) on another grid, bilinear."""
    if found.shape[-2:] == grid:
        return found
    flat = F.interpolate(found.flatten(1, 2), grid, mode="bilinear", align_corners=False)
    return flat.reshape(*found.shape[:3], *grid)


def rows(found: Tensor) -> Tensor:
    """(B, m, C, h, w) -> (B, m, h * w, C) unit rows, of length 0 where a feature is 0."""
    return F.normalize(found.flatten(3).transpose(2, 3), dim=-1)


def likeness(found: Tensor) -> Tensor:
    """(B, m, C, h, w) -> (B, h * w, h * w) cosines, the channels of all heads side by side."""
    unit = rows(found.flatten(1, 2)[:, None])[:, 0]
    return unit @ unit.transpose(1, 2)


class _ClipKeys:
    """The keys of CLIP's own last block, a map a head: a stand-in for a second model."""

    def __init__(self, tower: Tower, mean: Sequence[float], std: Sequence[float]) -> None:
        self.tower = tower
        self.mean, self.std = (torch.tensor(one).reshape(1, 3, 1, 1) for one in (mean, std))

    def __call__(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of CLIP's patch -> (B, m, D / m, h, w)."""
        visual = self.tower.visual
        pixels = (rgb - self.mean.to(rgb.device)) / self.std.to(rgb.device)
        tokens, grid = vit.embed(visual, pixels.to(visual.conv1.weight.dtype))
        entering = run_early(self.tower.blocks, tokens, Wanted()).entering
        [keys] = vit.project(self.tower.blocks[-1], entering[:, 1:], "k")
        maps: Tensor = keys.transpose(2, 3).unflatten(3, grid)
        return maps


def _own(name: str, module: str, function: str) -> Guest:
    """A function of the user's."""
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise GuestError(f"Guest {name!r}: expected {FORMS}.")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise GuestError(
            f"Guest {name!r}: cannot import {module!r} ({error}): is it installed, is the name right?"
        ) from error
    if not hasattr(found, function):
        raise GuestError(f"Guest {name!r}: {module} has no {function!r}.{nearest(function, vars(found))}")
    guest = getattr(found, function)
    if not callable(guest) or isinstance(guest, type):
        raise GuestError(
            f"Guest {name!r}: expected a function from (B, 3, H, W) RGB in [0, 1] to (B, C, h, w) features, "
            f"found {guest!r}."
        )
    made: Guest = guest
    return made
