"""Every number of the per-pixel network in one place; the defaults are the paper's (Xu et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.errors import TwostageError


class PerPixelError(TwostageError):
    """The network cannot be built from these options, or was given something that it cannot read."""


@dataclass(frozen=True)
class PerPixelConfig:
    """Options of the per-pixel network. What it shares with MaskFormer has the same name there.

    backbone: "r50", "r101c", "small", or "timm:NAME" for any timm model with four feature levels.
    small_widths, small_stride, small_blocks: channels, finest stride (2 or 4) and residual blocks of the
        small backbone; other backbones ignore them.
    timm_pretrained: let timm fetch its own weights (needs a network).
    pixel_dim: channels of the feature pyramid; mask_dim: channels of the map that pixels are read from.
    mask_kernel: side of the convolution that makes this map, 3 (paper) or 1.
    embedding_dim: width of the text features' joint space.
    logit_scale: factor on cosines; a constant of the paper, not CLIP's own.
    mean, std: of RGB in 0..255.
    size_divisibility: images are padded right and below to a multiple of it; 1 pads nothing (paper).
    """

    backbone: str = "r101c"
    small_widths: tuple[int, ...] = (32, 64, 128, 160)
    small_stride: int = 4
    small_blocks: tuple[int, ...] = (1, 1, 1, 1)
    timm_pretrained: bool = False
    pixel_dim: int = 256
    mask_dim: int = 256
    mask_kernel: int = 3
    embedding_dim: int = 512
    logit_scale: float = 100.0
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    size_divisibility: int = 1

    def __post_init__(self) -> None:
        if self.mask_kernel not in (1, 3):
            raise PerPixelError(f"PerPixelConfig.mask_kernel: expected 1 or 3, got {self.mask_kernel}.")
        for name in ("pixel_dim", "mask_dim", "embedding_dim", "size_divisibility"):
            if getattr(self, name) < 1:
                raise PerPixelError(f"PerPixelConfig.{name}: expected 1 or more, got {getattr(self, name)}.")
