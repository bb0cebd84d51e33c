"""The two networks as functions of tensors alone, and their way into an ONNX file.

Shapes: B images or crops, H' x W' pixels of a padded image, Q queries, K classes of up to S names, D joint
width. H', W', K, S and the crops' B stay open in the file; stage one takes one image.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from twostage.clip.towers import encode_at_any_size
from twostage.export.manifest import ExportError
from twostage.maskformer.heads import LinearClassHead, TextClassHead
from twostage.maskformer.network import MaskFormer
from twostage.ops.modes import evaluating

OLDEST_OPSET = 18
"""The first operator set that torch's exporter writes."""
LARGEST_FILE = 1_500_000_000
"""Bytes of weights that stay inside the .onnx file, whose format ends at 2 GB; others lie beside it."""
TRACED = (4, 6)
"""Image size at which stage one is traced, in steps of its padding; nothing of it remains in the file."""


class StageOneGraph(nn.Module):
    """pixels (1, 3, H', W'), normalised and padded -> masks (1, Q, h, w) logits, embeddings (1, Q, D).

    With a linear class head also classes (1, Q, K + 1) logits, "no object" last.
    """

    outputs: ClassVar[tuple[str, ...]] = ("masks", "embeddings")

    def __init__(self, network: MaskFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        seen = self.network.look(pixels, last_only=True)
        return seen.mask_logits[-1], seen.embeddings[-1]


class LinearStageOneGraph(StageOneGraph):
    """The same with the logits of the classes that a linear head knows, (1, Q, K + 1)."""

    outputs: ClassVar[tuple[str, ...]] = ("masks", "embeddings", "classes")

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        masks, embeddings = super().forward(pixels)
        head = self.network.class_head
        assert isinstance(head, LinearClassHead)
        return masks, embeddings, head.logits(embeddings)


class TextStageOneGraph(StageOneGraph):
    """The same with text (K, S, D) as a second input, rows of length one: classes (1, Q, K + 1) logits."""

    outputs: ClassVar[tuple[str, ...]] = ("masks", "embeddings", "classes")

    def forward(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        masks, embeddings = super().forward(pixels)
        head = self.network.class_head
        assert isinstance(head, TextClassHead)
        unit = functional.normalize(embeddings, dim=-1)
        # A class counts as its likeliest name, as in TextBank.logits.
        words = torch.einsum("bqd,ksd->bqks", unit, text).amax(dim=-1)
        none = unit @ functional.normalize(head.no_object, dim=-1).T
        return masks, embeddings, self.network.config.logit_scale * torch.cat([words, none], dim=-1)


class ClipImageGraph(nn.Module):
    """pixels (B, 3, E, E), normalised -> features (B, D), rows of length one."""

    outputs: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(encode_at_any_size(self.visual, pixels), dim=-1)


def stage_one_graph(network: MaskFormer, names_masks: bool) -> StageOneGraph:
    """The variant that suits the network's class head; names_masks: whether that head is asked at all."""
    if not names_masks:
        return StageOneGraph(network)
    linear = isinstance(network.class_head, LinearClassHead)
    return LinearStageOneGraph(network) if linear else TextStageOneGraph(network)


def write_stage_one(graph: StageOneGraph, path: Path, opset: int | None) -> int:
    """Write the file (weights beside it where they are large); gives its operator set."""
    step, config = graph.network.config.size_divisibility, graph.network.config
    dim = torch.export.Dim
    example: dict[str, Tensor] = {"pixels": torch.zeros(1, 3, TRACED[0] * step, TRACED[1] * step)}
    free: dict[str, Any] = {"pixels": {2: step * dim("rows"), 3: step * dim("columns")}}
    if isinstance(graph, TextStageOneGraph):
        example["text"] = functional.normalize(torch.ones(5, 3, config.embedding_dim), dim=-1)
        free["text"] = {0: dim("classes"), 1: dim("names")}
    return _write(graph, example, free, graph.outputs, path, opset)


def write_clip_image(visual: nn.Module, size_hw: tuple[int, int], path: Path, opset: int | None) -> int:
    """The same for an image tower that sees crops of size_hw pixels."""
    example = {"pixels": torch.zeros(2, 3, *size_hw)}
    free = {"pixels": {0: torch.export.Dim("batch")}}
    return _write(ClipImageGraph(visual), example, free, ClipImageGraph.outputs, path, opset)


def _write(
    graph: nn.Module,
    example: Mapping[str, Tensor],
    free: Mapping[str, Any],
    outputs: Sequence[str],
    path: Path,
    opset: int | None,
) -> int:
    if opset is not None and opset < OLDEST_OPSET:
        raise ExportError(f"--opset: expected at least {OLDEST_OPSET}, got {opset}.")
    inside = sum(p.numel() * p.element_size() for p in graph.state_dict().values()) <= LARGEST_FILE
    try:
        with evaluating(graph), torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                tuple(example.values()),
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=tuple(free.values()),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=not inside)
    except Exception as error:  # torch raises whatever the operator in question happens to raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            f"{path.name}: torch cannot write this network as ONNX with open sizes ({reason[0]}). "
            "Choose another backbone or image tower, or leave the operator set to torch."
        ) from error
    made = int(program.model.opset_imports[""])
    if opset not in (None, made):
        raise ExportError(f"--opset {opset}: torch wrote operator set {made}. Leave the option out.")
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own work."""
    chatty = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, before, strict=True):
            logger.setLevel(level)
