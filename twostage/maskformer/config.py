"""Every number of the network in one frozen place; the defaults are the paper's (Xu et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.errors import TwostageError
from twostage.vocabulary import nearest

MEMORIES = ("res5", "multi")
CLASS_HEADS = ("text", "linear")


class MaskFormerError(TwostageError):
    """The network cannot be built from these options, or was given something that it cannot read."""


def require_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a MaskFormerError that names the nearest choice unless `value` is one of `allowed`."""
    if value not in allowed:
        raise MaskFormerError(
            f"{field}: expected one of {', '.join(allowed)}, got {value!r}.{nearest(value, allowed)}"
        )


@dataclass(frozen=True)
class MaskFormerConfig:
    """Options of MaskFormer.

    Backbone
        backbone: "r50", "r101c", "small", or "timm:NAME" for any timm model with four feature levels.
        small_widths: channels of the small backbone's four levels; other backbones ignore it.
        small_stride: 2 or 4, the small backbone's finest stride (levels double from there).
        small_blocks: residual blocks of the small backbone's four levels.
        timm_pretrained: let timm fetch its own weights (needs a network).
    Pixel decoder
        pixel_dim: channels of the feature pyramid; mask_dim: channels of the mask features.
        mask_kernel: side of the last convolution, 3 (paper) or 1 (half the decoder's cost).
    Transformer
        hidden_dim, num_queries, decoder_layers, num_heads, feedforward_dim, dropout: as in the paper.
        memory: "res5" attends to the coarsest backbone level (paper); "multi" to the three coarsest levels of
            the pyramid in turn, coarse to fine, which finds smaller things (Cheng et al., 2022).
        masked_attention: a query looks only where the layer before put its mask.
    Heads
        class_head: "text" compares an embedding with text features; "linear" is one layer, num_classes + 1.
        embedding_dim: width of the text features' joint space; class_hidden_dim: of the layer before it.
        num_classes: K, for the linear head only.
        no_object_std: of the "no object" vector at the start (the text tower's width to the power -0.5).
        logit_scale: factor on cosines; a constant of the paper, not CLIP's own.
        pooled_class: let the class embedding see the mask features averaged under its mask.
        pixel_classifier: also embed every pixel into the joint space, for the auxiliary loss.
        pixel_pool: pooled_class and pixel_classifier read mask features averaged over squares of this side.
    Input
        mean, std: of RGB in 0..255; size_divisibility: images are padded right and below to a multiple of it.
    """

    backbone: str = "r101c"
    small_widths: tuple[int, ...] = (32, 64, 128, 160)
    small_stride: int = 4
    small_blocks: tuple[int, ...] = (1, 1, 1, 1)
    timm_pretrained: bool = False
    pixel_dim: int = 256
    mask_dim: int = 256
    mask_kernel: int = 3
    hidden_dim: int = 256
    num_queries: int = 100
    decoder_layers: int = 6
    num_heads: int = 8
    feedforward_dim: int = 2048
    dropout: float = 0.1
    memory: str = "res5"
    masked_attention: bool = False
    class_head: str = "text"
    embedding_dim: int = 512
    class_hidden_dim: int = 1024
    num_classes: int = 0
    no_object_std: float = 512**-0.5
    logit_scale: float = 100.0
    pooled_class: bool = False
    pixel_classifier: bool = False
    pixel_pool: int = 1
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    size_divisibility: int = 32

    def __post_init__(self) -> None:
        require_choice("MaskFormerConfig.memory", self.memory, MEMORIES)
        require_choice("MaskFormerConfig.class_head", self.class_head, CLASS_HEADS)
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise MaskFormerError(
                f"MaskFormerConfig.hidden_dim: expected a multiple of 4 and of num_heads ({self.num_heads}), "
                f"got {self.hidden_dim}."
            )
        if self.class_head == "linear" and self.num_classes < 1:
            raise MaskFormerError(
                "MaskFormerConfig.num_classes: the linear class head needs the number of classes."
            )
        if self.mask_kernel not in (1, 3):
            raise MaskFormerError(f"MaskFormerConfig.mask_kernel: expected 1 or 3, got {self.mask_kernel}.")
        if self.decoder_layers < 1 or self.num_queries < 1:
            raise MaskFormerError("MaskFormerConfig: decoder_layers and num_queries have to be at least 1.")
