"""Telling errors that mean "too little memory" from all others: the work after them may go on."""

from __future__ import annotations

import torch

_SAID = ("out of memory", "not enough memory", "can't allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU, in PyTorch's CPU allocator or in numpy."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)


def release_cached() -> None:
    """Gives memory back that PyTorch holds for later; the error's own tensors have to be gone by now."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
