"""Image towers at sizes other than their own: position tables are interpolated for one call, never in the
model.

Shapes: B images, D width, G_h x G_w native grid, h x w grid of this call.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostage.clip.checks import ClipError

PositionMode = Literal["bicubic", "bicubic_antialias", "bicubic_scale", "bilinear"]
POSITION_MODES: tuple[str, ...] = ("bicubic", "bicubic_antialias", "bicubic_scale", "bilinear")
"""bicubic: to size; bicubic_antialias: as open_clip resizes when it loads; bicubic_scale: by the factor (h +
0.1) / G_h, and the raw table whenever the token COUNT is native (SCLIP and its descendants); bilinear: CLIP
Surgery."""


def interpolate_positions(
    table: Tensor, native_hw: tuple[int, int], grid_hw: tuple[int, int], mode: PositionMode = "bicubic"
) -> Tensor:
    """(1 + G_h*G_w, D) -> (1 + h*w, D), computed in float32, returned in the table's dtype; row 0 is kept.

    At the native grid the very table is returned.
    """
    if mode not in POSITION_MODES:
        raise ClipError(
            f"Position interpolation: unknown mode {mode!r}. Allowed: {', '.join(POSITION_MODES)}."
        )
    if grid_hw == native_hw or (mode == "bicubic_scale" and grid_hw[0] * grid_hw[1] == len(table) - 1):
        return table
    grid = table[1:].float().T.reshape(1, -1, *native_hw)
    if mode == "bicubic_scale":
        factor = tuple((size + 0.1) / native for size, native in zip(grid_hw, native_hw, strict=True))
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", align_corners=False)
        if tuple(grid.shape[-2:]) != grid_hw:  # rounding of the factor; the published code stops here
            raise ClipError(f"Position interpolation: expected {grid_hw}, got {tuple(grid.shape[-2:])}.")
    else:
        method = "bilinear" if mode == "bilinear" else "bicubic"
        antialias = mode == "bicubic_antialias"
        grid = F.interpolate(grid, size=grid_hw, mode=method, align_corners=False, antialias=antialias)
    return torch.cat([table[:1], grid.flatten(2)[0].T.to(table.dtype)])


def is_vit(visual: nn.Module) -> bool:
    """Whether the tower has the parts of open_clip's VisionTransformer."""
    return all(
        hasattr(visual, part) for part in ("conv1", "class_embedding", "positional_embedding", "ln_post")
    )


def is_resnet(visual: nn.Module) -> bool:
    """Whether the tower is a ModifiedResNet: convolutions, then one attention pool."""
    return hasattr(visual, "attnpool") and hasattr(visual, "layer4")


def native_size(visual: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that the tower was built for."""
    size = visual.image_size
    if isinstance(size, int):
        return size, size
    height, width = size  # type: ignore[misc, union-attr]
    return int(height), int(width)


def grid_of(visual: nn.Module, size_hw: tuple[int, int]) -> tuple[int, int]:
    """Cells of the feature map for an image of this size in pixels."""
    if is_vit(visual):
        tall, wide = visual.patch_size  # type: ignore[misc, union-attr]
        return size_hw[0] // int(tall), size_hw[1] // int(wide)
    # ModifiedResNet: one stride-2 convolution with padding, then four halvings by average pooling
    return tuple((edge + 1) // 2 // 16 for edge in size_hw)  # type: ignore[return-value]


def encode_at_any_size(visual: nn.Module, pixels: Tensor, mode: PositionMode = "bicubic") -> Tensor:
    """pixels: (B, 3, H, W) normalised, in the tower's dtype -> (B, E), not normalised.

    At another size than its own the tower runs with an interpolated position table in place of its own, for
    this call only.

    Raises:
        ClipError: the tower has no position table that could be interpolated, or the image is smaller than
        one cell.
    """
    size = (pixels.shape[-2], pixels.shape[-1])
    if size == native_size(visual):
        return _pooled(visual(pixels))
    if not (is_vit(visual) or is_resnet(visual)):
        raise ClipError(
            f"{type(visual).__name__} takes images of {native_size(visual)} pixels only, got {size}."
            " Resize the crops to that size, or use a VisionTransformer or ModifiedResNet."
        )
    grid = grid_of(visual, size)
    if min(grid) < 1:
        raise ClipError(f"Images of {size} pixels are smaller than one cell of {type(visual).__name__}.")
    name = "positional_embedding" if is_vit(visual) else "attnpool.positional_embedding"
    table = visual.get_parameter(name)
    positions = interpolate_positions(table, grid_of(visual, native_size(visual)), grid, mode)
    return _pooled(torch.func.functional_call(visual, {name: positions}, (pixels,)))


def _pooled(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Towers built with `output_tokens` return the patch tokens too."""
    return output if isinstance(output, Tensor) else output[0]
