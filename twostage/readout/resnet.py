"""Dense features of CLIP's ModifiedResNet: the attention pool's value projection applied to every place of
the last map.

No attention and no positions take part (MaskCLIP, Zhou et al., 2022, section 3.1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from twostage.readout.vit import DenseTowerError


def last_map(visual: Any, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) normalised -> (B, C, h, w), what enters the attention pool."""
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    features: Tensor = x
    return features


def place_features(visual: Any, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """(B, C, h, w) -> (B, h * w, E) in the joint space, not normalised, and the grid (h, w)."""
    pool = visual.attnpool
    rows = features.flatten(2).transpose(1, 2)
    return pool.c_proj(pool.v_proj(rows)), (features.shape[-2], features.shape[-1])


def place_keys(visual: Any, features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), the pool's key of every place."""
    keys: Tensor = visual.attnpool.k_proj(features.flatten(2).transpose(1, 2))
    return keys


def require_preset(name: str) -> None:
    """A ModifiedResNet has no blocks whose attention could be changed.

    Raises:
        DenseTowerError: another preset than maskclip.
    """
    if name != "maskclip":
        raise DenseTowerError(
            f"Dense readout {name}: it changes attention in the blocks of a VisionTransformer, and a "
            "ModifiedResNet has none. Choose the preset maskclip, or a ViT (CLIP.MODEL ViT-B-16-quickgelu)."
        )
