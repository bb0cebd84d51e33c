"""The two-way table between the names in published checkpoints and this package's names for stage one.

Published names are those that the released checkpoints of Xu et al. (ECCV 2022) carry, and those of later
work on the same architecture (POMP: Ren et al., 2023). CLIP's own tensors inside them bear OpenAI's names,
which are open_clip's names too, so they need no table.
"""

from __future__ import annotations

from collections.abc import Iterable

ADAPTER = "clip_adapter."
REGION_ADAPTER = "_region_clip_adapter."
CLIP = "clip_model."
LEARNER = "prompt_learner."
NO_OBJECT = "non_object_embedding"
CLASS_WEIGHTS = "criterion.empty_weight"
HEAD = "sem_seg_head."
PREDICTOR = f"{HEAD}predictor."
DECODER = f"{PREDICTOR}transformer.decoder."
PIXEL_DECODER = _PIXELS = f"{HEAD}pixel_decoder."

STAGE_ONE: dict[str, str] = {
    "backbone.": "backbone.",
    **{f"{_PIXELS}adapter_{i}.norm.": f"pixel_decoder.laterals.{i - 1}.norm." for i in (1, 2, 3)},
    **{f"{_PIXELS}adapter_{i}.weight": f"pixel_decoder.laterals.{i - 1}.conv.weight" for i in (1, 2, 3)},
    **{f"{_PIXELS}layer_{i}.norm.": f"pixel_decoder.outputs.{i - 1}.norm." for i in (1, 2, 3, 4)},
    **{f"{_PIXELS}layer_{i}.weight": f"pixel_decoder.outputs.{i - 1}.conv.weight" for i in (1, 2, 3, 4)},
    f"{PIXEL_DECODER}mask_features.": "pixel_decoder.mask_features.",
    f"{PREDICTOR}input_proj.": "memory_projections.0.",
    f"{PREDICTOR}query_embed.": "query_embed.",
    DECODER: "decoder.",
    f"{PREDICTOR}mask_embed.": "mask_embed.",
    f"{PREDICTOR}class_embed.layers.": "class_head.perceptron.layers.",
    f"{PREDICTOR}class_embed.weight": "class_head.linear.weight",
    f"{PREDICTOR}class_embed.bias": "class_head.linear.bias",
    f"{ADAPTER}{NO_OBJECT}": "class_head.no_object",
}
"""Published name or prefix (ending in a dot) -> ours. No prefix begins another, on either side."""

ATTENTION = {".multihead_attn.": ".cross_attn."}
"""Parts of a name inside a decoder layer that differ too."""

_BACK = {ours: published for published, ours in STAGE_ONE.items()}


def our_name(published: str) -> str | None:
    """This package's name of a published one, or None where it is no part of stage one."""
    name = _translate(published, STAGE_ONE)
    if name is not None and published.startswith(DECODER):
        for theirs, ours in ATTENTION.items():
            name = name.replace(theirs, ours)
    return name


def published_name(ours: str) -> str | None:
    """The published name of one of stage one's, or None where the released network has no such tensor."""
    name = _translate(ours, _BACK)
    if name is not None and name.startswith(DECODER):
        for theirs, own in ATTENTION.items():
            name = name.replace(own, theirs)
    return name


def stage_one_table(published: Iterable[str]) -> dict[str, str]:
    """Our name -> published name, of those published names that belong to stage one."""
    return {name: source for source in published if (name := our_name(source)) is not None}


def numbers_after(prefix: str, names: Iterable[str]) -> list[int]:
    """The distinct numbers that stand behind a prefix: 0, 1, 2 for "res2.0.x", "res2.1.x", "res2.2.x"."""
    parts = (name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix))
    return sorted({int(part) for part in parts if part.isdecimal()})


def _translate(name: str, table: dict[str, str]) -> str | None:
    for source, target in table.items():
        if name == source or (source.endswith(".") and name.startswith(source)):
            return target + name.removeprefix(source)
    return None
