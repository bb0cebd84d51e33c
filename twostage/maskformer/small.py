"""A compact backbone for small drawn scenes: about a million parameters, quick on two processor cores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from twostage.maskformer.config import MaskFormerError
from twostage.maskformer.norm import group_norm


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv


class _Residual(nn.Module):
    """Two 3x3 convolutions with group normalisation around an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels, channels), group_norm(channels)
        self.conv2, self.norm2 = _conv(channels, channels), group_norm(channels)
        # The block starts as the identity, which lets a short training begin at once.
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(x + self.norm2(self.conv2(y)))


class SmallBackbone(nn.Module):
    """(B, 3, H, W) float32, normalised -> four levels at strides s, 2s, 4s, 8s with s = 2 or 4.

    widths: channels of the four levels; blocks: residual blocks of each, at the finest level they cost most.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 160),
        stride: int = 4,
        blocks: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        super().__init__()
        if len(widths) != 4 or stride not in (2, 4) or len(blocks) != 4:
            raise MaskFormerError(
                "SmallBackbone: expected four widths, four numbers of blocks and stride 2 or 4, "
                f"got widths {tuple(widths)}, blocks {tuple(blocks)}, stride {stride}."
            )
        self.channels = tuple(widths)
        self.strides = tuple(stride * 2**level for level in range(4))
        stem = [_conv(3, widths[0], 2), group_norm(widths[0]), nn.ReLU()]
        if stride == 4:
            stem += [_conv(widths[0], widths[0], 2), group_norm(widths[0]), nn.ReLU()]
        self.stem = nn.Sequential(*stem)
        self.levels = nn.ModuleList()
        inputs = widths[0]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            down = [_conv(inputs, width, 2), group_norm(width), nn.ReLU()] if level else []
            self.levels.append(nn.Sequential(*down, *(_Residual(width) for _ in range(count))))
            inputs = width

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        found = []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found
