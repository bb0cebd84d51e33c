"""Any timm model with four feature levels as a backbone."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from twostage.maskformer.config import MaskFormerError
from twostage.vocabulary import nearest


def _create(name: str, pretrained: bool) -> Any:
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MaskFormerError(
            f"Backbone 'timm:{name}' needs the package timm: pip install 'twostage[timm-backbones]'."
        ) from error
    if name.split(".")[0] not in timm.list_models():
        raise MaskFormerError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True)
    except Exception as error:  # timm raises whatever the model in question happens to raise
        raise MaskFormerError(f"timm cannot build {name!r} as a feature pyramid: {error}") from error


class TimmBackbone(nn.Module):
    """(B, 3, H, W) float32, normalised -> the last four levels of a timm model, fine to coarse.

    Raises:
        MaskFormerError: timm is missing, the name is unknown, or the last four levels do not fit together.
    """

    def __init__(self, name: str, pretrained: bool = False) -> None:
        super().__init__()
        self.body = _create(name, pretrained)
        info = self.body.feature_info
        self.channels = tuple(info.channels()[-4:])
        self.strides = tuple(info.reduction()[-4:])
        halving = all(b == 2 * a for a, b in zip(self.strides[:-1], self.strides[1:], strict=True))
        if len(self.strides) != 4 or not halving:
            raise MaskFormerError(
                f"timm:{name}: expected four feature levels that each halve the size, got strides "
                f"{tuple(info.reduction())}. Choose a pyramidal model, such as resnet50 or convnext_tiny."
            )
        self._check(name)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self._channels_first(*pair) for pair in zip(self.body(x)[-4:], self.channels, strict=True)]

    @staticmethod
    def _channels_first(level: Tensor, channels: int) -> Tensor:
        """Some of timm's transformers give (B, h, w, C)."""
        first, last = level.shape[1] == channels, level.shape[-1] == channels
        return level.movedim(-1, 1) if last and not first else level

    @torch.no_grad()
    def _check(self, name: str) -> None:
        """One forward pass on a blank picture, as some models want one image size only."""
        was_training = self.body.training
        self.body.eval()
        try:
            shapes = [tuple(level.shape[1:]) for level in self(torch.zeros(1, 3, 96, 128))]
        except Exception as error:
            raise MaskFormerError(
                f"timm:{name} does not accept images of any size ({error}). Choose a convolutional model."
            ) from error
        finally:
            self.body.train(was_training)
        wanted = [(c, 96 // s, 128 // s) for c, s in zip(self.channels, self.strides, strict=True)]
        if shapes != wanted:
            raise MaskFormerError(
                f"timm:{name}: expected levels {wanted} for a 96 x 128 image, got {shapes}."
            )
