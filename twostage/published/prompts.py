"""Learned prompt vectors inside published checkpoints, and the fixed embeddings stored beside them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from twostage.published.names import LEARNER

VECTORS = "prefix_prompt"
SIGNALS = {"start_signal": 49406, "dot_signal": 269, "end_signal": 49407, "pad_signal": 0}
"""Stored embedding -> the token it is the embedding of."""


def prompt_shapes(adapter: Mapping[str, Tensor], width: int | None) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what a prompt learner has to store, and of what it may store where that is there.

    adapter: names without its prefix; width: of the text tower, None where no CLIP lies beside the vectors.
    """
    vectors = adapter.get(f"{LEARNER}{VECTORS}")
    count, own = (0, 0) if vectors is None or vectors.ndim != 2 else tuple(vectors.shape)
    wide = own if width is None else width
    signals = {f"{LEARNER}{signal}": (1, wide) for signal in SIGNALS}
    stored = {name: shape for name, shape in signals.items() if name in adapter}
    return {f"{LEARNER}{VECTORS}": (max(count, 1), wide), **stored}


def strange_signals(adapter: Mapping[str, Tensor]) -> list[str]:
    """Lines on stored embeddings that are not those of the CLIP beside them; adapter: without its prefix."""
    table = adapter.get("clip_model.token_embedding.weight")
    lines = []
    for signal, token in SIGNALS.items():
        stored = adapter.get(f"{LEARNER}{signal}")
        if table is None or stored is None or stored.shape != (1, table.shape[1]) or token >= len(table):
            continue
        if not torch.allclose(stored[0].float(), table[token].float(), rtol=1e-3, atol=1e-4):
            lines.append(f"{LEARNER}{signal}: not the embedding of token {token} of the CLIP beside it")
    return lines
