"""How much memory a network's answer takes, and what is left to do when there is not enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LIVE = 8
"""Peak over the output of a tower's widest layer. Measured on a CPU with 8 and 32 crops: 5.3 to 7.5 for
ViT-B/16 in float32 and bfloat16 (the most with the exact GELU), 5.5 for RN50.
"""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU, in PyTorch's CPU allocator or in numpy."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)


@torch.no_grad()
def activation_bytes(network: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that a run of `network` has alive at its peak, estimated from its widest layer.

    run: asks the network for one sample.
    """
    widest = 0

    def look(part: nn.Module, given: Any, made: Any) -> None:
        nonlocal widest
        if isinstance(made, Tensor):
            widest = max(widest, made.numel() * made.element_size())

    leaves = [part for part in network.modules() if not any(True for _ in part.children())]
    hooks = [leaf.register_forward_hook(look) for leaf in leaves]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return LIVE * widest
