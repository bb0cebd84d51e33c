"""Which network a published checkpoint was made for, read off its shapes, and what that network needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twostage.maskformer.config import MaskFormerConfig
from twostage.maskformer.network import MaskFormer
from twostage.maskformer.resnet import VARIANTS, DeepStem
from twostage.published.errors import PublishedError
from twostage.published.names import DECODER, PIXEL_DECODER, PREDICTOR, numbers_after

_SIZES = {
    "num_queries": (f"{PREDICTOR}query_embed.weight", 0),
    "hidden_dim": (f"{PREDICTOR}query_embed.weight", 1),
    "feedforward_dim": (f"{DECODER}layers.0.linear1.weight", 0),
    "pixel_dim": (f"{PIXEL_DECODER}layer_1.weight", 0),
    "mask_dim": (f"{PIXEL_DECODER}mask_features.weight", 0),
}
_CLASS = f"{PREDICTOR}class_embed."


def network_options(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """MODEL.MASK_FORMER's options for the network of a published checkpoint, by published names.

    Raises:
        PublishedError: a tensor that would tell is missing, or the backbone is none of ours.
    """
    layers = len(numbers_after(f"{DECODER}layers.", tensors))
    options: dict[str, Any] = {"backbone": which_backbone(tensors, "backbone.", where)}
    options |= {name: _side(tensors, *place, where) for name, place in _SIZES.items()}
    options["decoder_layers"] = layers
    if f"{_CLASS}weight" in tensors:
        rows = _side(tensors, f"{_CLASS}weight", 0, where)
        return options | {"class_head": "linear", "num_classes": rows - 1}
    options["class_hidden_dim"] = _side(tensors, f"{_CLASS}layers.0.weight", 0, where)
    options["embedding_dim"] = _side(tensors, f"{_CLASS}layers.1.weight", 0, where)
    return options


def which_backbone(tensors: Mapping[str, Tensor], prefix: str, where: str) -> str:
    """r50 or r101c: by the stem and the number of blocks of each stage.

    Raises:
        PublishedError: neither.
    """
    deep = f"{prefix}stem.conv3.weight" in tensors
    blocks = tuple(len(numbers_after(f"{prefix}res{stage}.", tensors)) for stage in (2, 3, 4, 5))
    for name, variant in VARIANTS.items():
        if variant.blocks == blocks and (variant.stem is DeepStem) == deep:
            return name
    known = "; ".join(
        f"{name}: {_stem(v.stem is DeepStem)}, blocks {'-'.join(map(str, v.blocks))}"
        for name, v in VARIANTS.items()
    )
    swin = any(name.startswith(f"{prefix}patch_embed.") for name in tensors)
    found = "a Swin transformer" if swin else f"{_stem(deep)}, blocks {'-'.join(map(str, blocks))}"
    raise PublishedError(f"{where}: the backbone is {found}; known are {known}.")


def expected_shapes(options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every tensor of the network with these options; no memory is spent on it."""
    with torch.device("meta"):
        network = MaskFormer(MaskFormerConfig(**options))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _stem(deep: bool) -> str:
    return "a stem of three convolutions" if deep else "a stem of one convolution"


def _side(tensors: Mapping[str, Tensor], name: str, axis: int, where: str) -> int:
    if name not in tensors or tensors[name].ndim <= axis:
        raise PublishedError(f"{where}: it has no {name}, so its network is incomplete or another one.")
    return tensors[name].shape[axis]
