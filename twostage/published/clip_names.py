"""OpenAI's CLIP models (Radford et al., 2021) as names and shapes: which one a state dict holds, and whether
all of it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from twostage.published.errors import PublishedError
from twostage.published.names import numbers_after

Shapes = dict[str, tuple[int, ...]]
TOKENS, CONTEXT = 49408, 77


@dataclass(frozen=True)
class Architecture:
    """One released model. joint: width of the joint space; text: width of the text tower; blocks: of the four
    stages of a residual network, or the one number of transformer layers; patch: side in pixels, 0 for a
    residual network; size: side in pixels of its photos.
    """

    joint: int
    text: int
    width: int
    blocks: tuple[int, ...]
    patch: int
    size: int


ARCHITECTURES = {
    "ViT-B-32-quickgelu": Architecture(512, 512, 768, (12,), 32, 224),
    "ViT-B-16-quickgelu": Architecture(512, 512, 768, (12,), 16, 224),
    "ViT-L-14-quickgelu": Architecture(768, 768, 1024, (24,), 14, 224),
    "ViT-L-14-336-quickgelu": Architecture(768, 768, 1024, (24,), 14, 336),
    "RN50-quickgelu": Architecture(1024, 512, 64, (3, 4, 6, 3), 0, 224),
    "RN101-quickgelu": Architecture(512, 512, 64, (3, 4, 23, 3), 0, 224),
    "RN50x4-quickgelu": Architecture(640, 640, 80, (4, 6, 10, 6), 0, 288),
    "RN50x16-quickgelu": Architecture(768, 768, 96, (6, 8, 18, 8), 0, 384),
    "RN50x64-quickgelu": Architecture(1024, 1024, 128, (3, 15, 36, 10), 0, 448),
}
"""open_clip's name -> numbers. All were trained with QuickGELU."""


def clip_shapes(architecture: Architecture) -> Shapes:
    """Name -> shape of every tensor of such a model, 302 of them for ViT-B/16."""
    a = architecture
    shapes: Shapes = {
        "positional_embedding": (CONTEXT, a.text),
        "text_projection": (a.text, a.joint),
        "logit_scale": (),
        "token_embedding.weight": (TOKENS, a.text),
        **_norm("ln_final", a.text),
        **_transformer("transformer", a.text, 12),
    }
    return shapes | (_vision_transformer(a) if a.patch else _residual_network(a))


def which_clip(tensors: Mapping[str, Tensor], where: str) -> str:
    """open_clip's name of the model that these tensors are, by their shapes.

    Raises:
        PublishedError: none of OpenAI's has these shapes.
    """
    found = _signature(tensors)
    for name, a in ARCHITECTURES.items():
        places = a.size // a.patch if a.patch else a.size // 32
        if found == (a.joint, a.text, a.width, a.blocks, a.patch, places**2 + 1):
            return name
    raise PublishedError(
        f"{where}: the CLIP inside is none of {', '.join(ARCHITECTURES)}: its (joint width, text width, "
        f"image width, blocks, patch side, positions) are {found}."
    )


def _signature(tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape) if name in tensors else ()

    projection = shape("text_projection")
    text, joint = projection if len(projection) == 2 else (0, 0)
    if "visual.proj" in tensors:
        first = (*shape("visual.conv1.weight"), 0, 0, 0, 0)
        blocks: tuple[int, ...] = (len(numbers_after("visual.transformer.resblocks.", tensors)),)
        table = "visual.positional_embedding"
        width, patch = first[0], first[3]
    else:
        blocks = tuple(len(numbers_after(f"visual.layer{i}.", tensors)) for i in (1, 2, 3, 4))
        table = "visual.attnpool.positional_embedding"
        width, patch = (*shape("visual.conv3.weight"), 0)[0], 0
    return joint, text, width, blocks, patch, (*shape(table), 0)[0]


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _transformer(name: str, width: int, layers: int) -> Shapes:
    shapes: Shapes = {}
    for layer in range(layers):
        block = f"{name}.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{block}.attn.out_proj", width, width),
            **_norm(f"{block}.ln_1", width),
            **_linear(f"{block}.mlp.c_fc", width, 4 * width),
            **_linear(f"{block}.mlp.c_proj", 4 * width, width),
            **_norm(f"{block}.ln_2", width),
        }
    return shapes


def _vision_transformer(a: Architecture) -> Shapes:
    return {
        "visual.class_embedding": (a.width,),
        "visual.positional_embedding": ((a.size // a.patch) ** 2 + 1, a.width),
        "visual.proj": (a.width, a.joint),
        "visual.conv1.weight": (a.width, 3, a.patch, a.patch),
        **_norm("visual.ln_pre", a.width),
        **_transformer("visual.transformer", a.width, a.blocks[0]),
        **_norm("visual.ln_post", a.width),
    }


def _batch_norm(name: str, width: int) -> Shapes:
    statistics = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return {**_norm(name, width), **statistics, f"{name}.num_batches_tracked": ()}


def _residual_network(a: Architecture) -> Shapes:
    """A deep stem, bottlenecks whose shortcut is averaged before it is projected, and attention pooling."""
    half = a.width // 2
    shapes: Shapes = {
        "visual.conv1.weight": (half, 3, 3, 3),
        "visual.conv2.weight": (half, half, 3, 3),
        "visual.conv3.weight": (a.width, half, 3, 3),
        **_batch_norm("visual.bn1", half),
        **_batch_norm("visual.bn2", half),
        **_batch_norm("visual.bn3", a.width),
    }
    inputs = a.width
    for stage, blocks in enumerate(a.blocks):
        inner = a.width << stage
        for block in range(blocks):
            name = f"visual.layer{stage + 1}.{block}"
            shapes |= {
                f"{name}.conv1.weight": (inner, inputs, 1, 1),
                f"{name}.conv2.weight": (inner, inner, 3, 3),
                f"{name}.conv3.weight": (4 * inner, inner, 1, 1),
                **_batch_norm(f"{name}.bn1", inner),
                **_batch_norm(f"{name}.bn2", inner),
                **_batch_norm(f"{name}.bn3", 4 * inner),
            }
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                shapes |= _batch_norm(f"{name}.downsample.1", 4 * inner)
            inputs = 4 * inner
    pool = "visual.attnpool"
    shapes[f"{pool}.positional_embedding"] = ((a.size // 32) ** 2 + 1, inputs)
    for part in ("q_proj", "k_proj", "v_proj"):
        shapes |= _linear(f"{pool}.{part}", inputs, inputs)
    return shapes | _linear(f"{pool}.c_proj", inputs, a.joint)
