"""The pixel decoder: a feature pyramid (Lin et al., 2017) that ends in the map which masks are read from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from twostage.maskformer.norm import group_norm


def fill_uniform(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, its weight uniform with variance 1 / fan-in and its bias 0."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class _ConvGroupNorm(nn.Module):
    """A convolution without bias and group normalisation, no activation."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.conv = fill_uniform(nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False))
        self.norm = group_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class PixelDecoder(nn.Module):
    """Four backbone levels, fine to coarse -> mask features at the finest stride, and the pyramid.

    laterals: 1x1, one for each level but the coarsest, without activation; outputs: 3x3 with ReLU, one a
    level; both lists run fine to coarse. mask_features: the last convolution, with bias and nothing after it.
    """

    def __init__(self, channels: Sequence[int], pixel_dim: int, mask_dim: int, mask_kernel: int = 3) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_ConvGroupNorm(inputs, pixel_dim, 1) for inputs in channels[:-1])
        inputs_of = [*[pixel_dim] * (len(channels) - 1), channels[-1]]
        self.outputs = nn.ModuleList(_ConvGroupNorm(inputs, pixel_dim, 3) for inputs in inputs_of)
        self.mask_features = fill_uniform(
            nn.Conv2d(pixel_dim, mask_dim, mask_kernel, padding=mask_kernel // 2)
        )

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """levels: (B, C_i, h_i, w_i), fine to coarse.

        Returns the mask features (B, mask_dim, h_0, w_0), and the pyramid (B, pixel_dim, h_i, w_i).
        """
        top = functional.relu(self.outputs[-1](levels[-1]))
        pyramid = [top]
        for index in range(len(levels) - 2, -1, -1):
            side = self.laterals[index](levels[index])
            merged = side + functional.interpolate(top, size=side.shape[-2:], mode="nearest")
            top = functional.relu(self.outputs[index](merged))
            pyramid.insert(0, top)
        return self.mask_features(top), pyramid
