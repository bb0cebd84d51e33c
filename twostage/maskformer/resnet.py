"""The residual networks of the paper: R50, and R101c with its deep stem and dilated last stage.

Parameter and buffer names are the ones that ImageNet weights for Detectron2 carry, so these load by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose scale, shift and statistics never change: all four are buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (C,) each: what the layer does to its input."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its frozen normalisation, computed as one convolution.

    Scaling the weight instead of the output saves time, and one activation kept for the backward pass.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int = 1, padding: int = 0, dilation: int = 1
    ) -> None:
        super().__init__(inputs, outputs, size, stride, padding, dilation, bias=False)
        self.norm = FrozenBatchNorm(outputs)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.norm.affine()
        return functional.conv2d(
            x, self.weight * scale[:, None, None, None], shift, self.stride, self.padding, self.dilation
        )


class BasicStem(nn.Module):
    """7x7 convolution and max-pool: (B, 3, H, W) -> (B, 64, H/4, W/4)."""

    channels = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 64, 7, stride=2, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu_(self.conv1(x)), 3, stride=2, padding=1)


class DeepStem(nn.Module):
    """Three 3x3 convolutions and max-pool, as in DeepLab: (B, 3, H, W) -> (B, 128, H/4, W/4)."""

    channels = 128

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 64, 3, stride=2, padding=1)
        self.conv2 = ConvNorm(64, 64, 3, padding=1)
        self.conv3 = ConvNorm(64, 128, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = functional.relu_(conv(x))
        return functional.max_pool2d(x, 3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries stride and dilation), 1x1; the shortcut is projected where shapes differ."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride) if inputs != outputs else None
        self.conv1 = ConvNorm(inputs, inner, 1)
        self.conv2 = ConvNorm(inner, inner, 3, stride=stride, padding=dilation, dilation=dilation)
        self.conv3 = ConvNorm(inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu_(self.conv1(x))
        y = functional.relu_(self.conv2(y))
        y = self.conv3(y)
        y += x if self.shortcut is None else self.shortcut(x)
        return functional.relu_(y)


@dataclass(frozen=True)
class Variant:
    """Blocks of the four stages, the stem, and the dilations inside the last stage."""

    blocks: tuple[int, int, int, int]
    stem: type[BasicStem] | type[DeepStem]
    last_dilations: Sequence[int]


VARIANTS = {
    "r50": Variant((3, 4, 6, 3), BasicStem, (1, 1, 1)),
    "r101c": Variant((3, 4, 23, 3), DeepStem, (1, 2, 4)),
}


class ResNet(nn.Module):
    """(B, 3, H, W) normalised -> res2..res5: 256, 512, 1024, 2048 channels at strides 4, 8, 16, 32."""

    channels = (256, 512, 1024, 2048)
    strides = (4, 8, 16, 32)

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.stem = variant.stem()
        inputs = variant.stem.channels
        for stage, (blocks, outputs) in enumerate(zip(variant.blocks, self.channels, strict=True)):
            dilations = variant.last_dilations if stage == 3 else (1,) * blocks
            layers = []
            for block, dilation in enumerate(dilations):
                stride = 2 if block == 0 and stage > 0 else 1
                layers.append(Bottleneck(inputs, outputs // 4, outputs, stride, dilation))
                inputs = outputs
            setattr(self, f"res{stage + 2}", nn.Sequential(*layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        levels = []
        for name in ("res2", "res3", "res4", "res5"):
            x = getattr(self, name)(x)
            levels.append(x)
        return levels
