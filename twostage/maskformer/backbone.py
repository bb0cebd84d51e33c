"""The backbones by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from twostage.maskformer.config import MaskFormerError
from twostage.maskformer.resnet import VARIANTS, ResNet
from twostage.maskformer.small import SmallBackbone
from twostage.maskformer.timm_backbone import TimmBackbone
from twostage.vocabulary import nearest

TIMM = "timm:"


class Backbone(Protocol):
    """(B, 3, H, W) normalised -> four levels (B, C_i, H / stride_i, W / stride_i), fine to coarse."""

    @property
    def channels(self) -> Sequence[int]: ...

    @property
    def strides(self) -> Sequence[int]: ...

    def __call__(self, x: Tensor) -> list[Tensor]: ...


class BackboneOptions(Protocol):
    """What a network's options say of its backbone; MaskFormerConfig tells what they mean."""

    @property
    def backbone(self) -> str: ...

    @property
    def small_widths(self) -> Sequence[int]: ...

    @property
    def small_stride(self) -> int: ...

    @property
    def small_blocks(self) -> Sequence[int]: ...

    @property
    def timm_pretrained(self) -> bool: ...


def build_backbone(config: BackboneOptions) -> nn.Module:
    """The backbone that config.backbone names; the module satisfies `Backbone`.

    Raises:
        MaskFormerError: no backbone has that name, or its options do not fit.
    """
    name = config.backbone
    if name.startswith(TIMM):
        return TimmBackbone(name.removeprefix(TIMM), config.timm_pretrained)
    if name in VARIANTS:
        return ResNet(VARIANTS[name])
    if name == "small":
        return SmallBackbone(config.small_widths, config.small_stride, config.small_blocks)
    known = [*VARIANTS, "small", "timm:NAME"]
    raise MaskFormerError(
        f"Unknown backbone {name!r}: expected one of {', '.join(known)}.{nearest(name, known)}"
    )
