"""A trained MaskFormer made ready to be asked only: frozen norms folded into their convolutions, and the
convolutions, which are nine tenths of its work, in a number format that the device is fast in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from twostage.maskformer.network import MaskFormer
from twostage.maskformer.resnet import ConvNorm


class InFormat(nn.Module):
    """A part that computes in `dtype`; what it gives is float32 where `back` is set."""

    def __init__(self, part: nn.Module, dtype: torch.dtype, back: bool) -> None:
        super().__init__()
        self.part = part.to(dtype)
        self._dtype, self._back = dtype, back

    def forward(self, given: Any) -> Any:
        """Tensors, or lists and tuples of them, as the part takes and gives them."""
        made = self.part(_converted(given, self._dtype))
        return _converted(made, torch.float32) if self._back else made


def make_lean(network: MaskFormer, dtype: torch.dtype = torch.float32) -> MaskFormer:
    """Changes the network in place and returns it; it is not to be trained or saved afterwards.

    dtype: of the backbone, the pixel decoder and the projections in front of the queries. The queries, the
    masks and the embeddings are float32 whatever it is: a mask is cut where its logit changes sign.
    """
    network.eval().requires_grad_(False)
    _fold(network.backbone)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if dtype != torch.float32:
        network.backbone = InFormat(network.backbone, dtype, back=False)
        network.pixel_decoder = InFormat(network.pixel_decoder, dtype, back=True)  # type: ignore[assignment]
        network.memory_projections = nn.ModuleList(
            InFormat(part, dtype, back=True) for part in network.memory_projections
        )
    return network


def _fold(root: nn.Module) -> None:
    """Every convolution with a frozen norm becomes one with a bias."""
    for parent in list(root.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, ConvNorm):
                setattr(parent, name, _folded(part))


def _folded(conv: ConvNorm) -> nn.Conv2d:
    scale, shift = conv.norm.affine()
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        device="meta",
    )
    made.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None], requires_grad=False)
    made.bias = nn.Parameter(shift.detach().clone(), requires_grad=False)
    return made


def _converted(given: Any, dtype: torch.dtype) -> Any:
    if isinstance(given, Tensor):
        return given.to(dtype) if given.is_floating_point() else given
    assert isinstance(given, Iterable)
    return type(given)(_converted(one, dtype) for one in given)  # type: ignore[call-arg]
