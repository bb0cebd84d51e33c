"""The published checkpoint's names and this package's names for the same tensors of stage one."""

from collections.abc import Iterable

HEAD = "sem_seg_head"
PREFIXES = {
    "backbone.": "backbone.",
    **{
        f"{HEAD}.pixel_decoder.adapter_{i}.weight": f"pixel_decoder.laterals.{i - 1}.conv.weight"
        for i in (1, 2, 3)
    },
    **{f"{HEAD}.pixel_decoder.adapter_{i}.norm.": f"pixel_decoder.laterals.{i - 1}.norm." for i in (1, 2, 3)},
    **{
        f"{HEAD}.pixel_decoder.layer_{i}.weight": f"pixel_decoder.outputs.{i - 1}.conv.weight"
        for i in (1, 2, 3, 4)
    },
    **{f"{HEAD}.pixel_decoder.layer_{i}.norm.": f"pixel_decoder.outputs.{i - 1}.norm." for i in (1, 2, 3, 4)},
    f"{HEAD}.pixel_decoder.mask_features.": "pixel_decoder.mask_features.",
    f"{HEAD}.predictor.input_proj.": "memory_projections.0.",
    f"{HEAD}.predictor.query_embed.": "query_embed.",
    f"{HEAD}.predictor.transformer.decoder.": "decoder.",
    f"{HEAD}.predictor.mask_embed.": "mask_embed.",
    f"{HEAD}.predictor.class_embed.": "class_head.perceptron.",
    "clip_adapter.non_object_embedding": "class_head.no_object",
}
NOT_STAGE_ONE = (
    "criterion.empty_weight",
    "clip_adapter.pixel_mean",
    "clip_adapter.pixel_std",
    "clip_adapter.clip_model.",
    "clip_adapter.prompt_learner.",
)


def our_name(published: str) -> str | None:
    """This package's name of a published one, or None where it is no part of stage one."""
    if published.startswith(NOT_STAGE_ONE):
        return None
    found = [prefix for prefix in PREFIXES if published.startswith(prefix)]
    if len(found) != 1:
        raise KeyError(f"{published}: expected one matching prefix, found {found}")
    return (PREFIXES[found[0]] + published.removeprefix(found[0])).replace(".multihead_attn.", ".cross_attn.")


def name_table(ours: Iterable[str], published: Iterable[str]) -> dict[str, str]:
    """Our name -> published name, refusing names that one side has and the other lacks."""
    table = {name: source for source in published if (name := our_name(source)) is not None}
    missing, extra = set(ours) - set(table), set(table) - set(ours)
    if missing or extra:
        raise KeyError(f"without a source: {sorted(missing)}; without a place: {sorted(extra)}")
    return table
