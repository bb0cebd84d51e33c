"""Options that spend more time on a photo: several sizes, mirror images, windows, a random field."""
# ruff: noqa: RUF009  option() makes a dataclass field, which is what a default may be

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class AugConfig:
    """Looking at a photo at several sizes and mirrored; class maps are averaged at its own size."""

    enabled: bool = option(False, "Whether to do so")
    min_sizes: list[int] = option(
        [],
        "Shorter edges in pixels; empty keeps INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST. The paper: COCO-Stuff "
        "320, 480, 640, 800, 960, 1120 with MAX_SIZE 4480; VOC, ADE20K and Pascal Context 256, 384, 512, "
        "640, 768, 896 with 3584; Cityscapes 512, 768, 1024, 1280, 1536, 1792 with 4096",
        least=1,
    )
    max_size: int = option(4480, "Longest allowed longer edge, pixels", least=1)
    flip: bool = option(True, "Look at the mirror image of each size too")


@dataclass(frozen=True)
class WindowConfig:
    """Looking at a photo through a sliding window; class maps are averaged where windows overlap."""

    size: list[int] = option(
        [],
        "Side of the square window in pixels of the resized photo, one for all sizes or one for each of "
        "AUG.MIN_SIZES; 0 or empty takes the whole. The paper: 224. A photo that is smaller is seen whole",
        least=0,
    )
    stride: int = option(0, "Step of the window in pixels; 0 takes a third of its side, rounded up", least=0)


@dataclass(frozen=True)
class CrfConfig:
    """Sharpening labels at edges of the photo with a dense conditional random field."""

    enabled: bool = option(False, "Whether to do so")
    iterations: int = option(5, "Steps of the mean field", least=1)
    unary: str = option(
        "softmax",
        "How class maps become probabilities: their softmax (the paper; flat, so that the photo decides "
        "much and small things get lost), or each class's share of their sum, which keeps more of the maps",
        choices=("softmax", "shares"),
    )
    sxy: float = option(3.0, "Reach of the smoothing by place alone, standard deviation in pixels", above=0)
    compat: float = option(3.0, "Its strength", least=0)
    bilateral_sxy: float = option(80.0, "Reach of the smoothing by place and colour, pixels", above=0)
    bilateral_srgb: float = option(13.0, "How far colours may differ in it, grey levels of 255", above=0)
    bilateral_compat: float = option(10.0, "Its strength", least=0)
    max_classes: int = option(
        32,
        "Classes that take part, those that lead in the most pixels of the photo; time and memory grow with "
        "this number, not with the vocabulary",
        least=2,
    )
