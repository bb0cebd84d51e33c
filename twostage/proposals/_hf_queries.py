"""Masks from networks of queries (MaskFormer, Mask2Former, OneFormer, EoMT), whatever they call them.

Cheng et al., "Per-Pixel Classification is Not All You Need", NeurIPS 2021, and "Masked-attention Mask
Transformer", CVPR 2022; Jain et al., "OneFormer", CVPR 2023; Kerssies et al., "Your ViT is Secretly an Image
Segmentation Model", CVPR 2025. Shapes: Q queries, K classes, D width of a query.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from twostage.proposals._hf_frame import Frame
from twostage.proposals._hf_models import HubModel
from twostage.registry import ComponentError
from twostage.weights import WeightsError

STEP = 32
"""The networks halve the photo five times."""

TASKS = {
    "panoptic": (49406, 518, 10549, 533, 1072, 24755, 49407),
    "instance": (49406, 518, 10549, 533, 34572, 49407),
    "semantic": (49406, 518, 10549, 533, 29119, 1550, 49407),
}
"""What OneFormer is asked for: CLIP's tokens of "the task is ...", the rest of the sequence is 0."""


class Found(NamedTuple):
    """logits: (Q, h, w) of the masks on the network's own grid; scores: (Q,); embeddings: (Q, D) or None."""

    logits: Tensor
    scores: Tensor
    embeddings: Tensor | None


def frame_of(model: HubModel, image_hw: tuple[int, int], size: int) -> Frame:
    """How the photo is shown; size: its shorter edge, 0 takes what was published with the weights.

    Raises:
        ComponentError: a size for a network that knows but one.
    """
    if model.side:
        if size not in (0, model.side):
            raise ComponentError(
                f"HfProposals: these weights see {model.side} x {model.side} pixels, not {size}: leave size "
                "at 0."
            )
        return Frame.in_square(image_hw, model.side)
    short = size or model.short
    return Frame.by_edge(image_hw, short, round(model.long * short / model.short), STEP)


def ask(model: HubModel, frame: Frame, pixels: Tensor, task: str) -> Found:
    """One look at the photo: its queries' masks, scores and last states.

    A score is (1 - p("no object")) x the mean probability inside the mask, taken over the cells of the
    network's grid that hold the photo and lie above one half; 0 where there are none.

    Raises:
        WeightsError: masks that are not numbers.
    """
    more: dict[str, Any] = {}
    if model.kind == "oneformer":
        more["task_inputs"] = task_tokens(task, model).to(pixels.device)
    output: Any = model.network(pixel_values=pixels, **more)
    logits, classes = output.masks_queries_logits[0], output.class_queries_logits[0]
    if not (torch.isfinite(logits).all() and torch.isfinite(classes).all()):
        raise WeightsError(
            "HfProposals: the network's answer holds NaN or infinite numbers: damaged weights?"
        )
    inside = mean_inside(frame.photo_part(logits))
    scores = (1 - classes.float().softmax(dim=-1)[:, -1]) * inside
    return Found(logits, scores, _states(model, output, len(logits)))


def mean_inside(logits: Tensor) -> Tensor:
    """(Q, h, w) logits -> (Q,) mean probability over the cells above one half; 0 where there are none."""
    probs = logits.float().sigmoid()
    inside = probs > 0.5
    return (probs * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)


def task_tokens(task: str, model: HubModel) -> Tensor:
    """(1, L) int64, L the length that OneFormer was trained with."""
    config: Any = model.network.config
    tokens = torch.zeros(1, config.task_seq_len, dtype=torch.int64)
    tokens[0, : len(TASKS[task])] = torch.tensor(TASKS[task])[: config.task_seq_len]
    return tokens


def _states(model: HubModel, output: Any, queries: int) -> Tensor | None:
    """(Q, D) of length one: the queries as they leave the last layer, or None where the model keeps them."""
    if model.kind == "oneformer":
        states = output.transformer_decoder_object_queries
    elif model.kind in ("eomt", "eomt_dinov3"):
        states = output.last_hidden_state[:, :queries]
    else:
        states = output.transformer_decoder_last_hidden_state
    if states is None or tuple(states.shape[:2]) != (1, queries):
        return None
    return functional.normalize(states[0].float(), dim=-1)
