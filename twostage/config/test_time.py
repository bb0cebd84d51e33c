"""Options that spend more time on a photo: several sizes, mirror images, windows, a random field."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class AugConfig:
    """Looking at a photo at several sizes and mirrored; class maps are averaged."""

    enabled: bool = option(False, "Whether to do so")
    min_sizes: list[int] = option([], "Shorter edges in pixels; empty keeps INPUT.MIN_SIZE_TEST", least=1)
    max_size: int = option(4096, "Longest allowed longer edge, pixels", least=1)
    flip: bool = option(True, "Look at the mirror image of each size too")


@dataclass(frozen=True)
class WindowConfig:
    """Looking at a photo through a sliding window; class maps are averaged where windows overlap."""

    size: int = option(0, "Side of the window in pixels of the resized photo; 0 takes the whole", least=0)
    stride: int = option(0, "Step of the window in pixels; 0 takes a third of its side", least=0)


@dataclass(frozen=True)
class CrfConfig:
    """Sharpening labels at edges of the photo with a dense conditional random field."""

    enabled: bool = option(False, "Whether to do so")
    iterations: int = option(5, "Steps of the mean field", least=1)
