"""Errors after which the next photo may go on: its file is bad, or the memory was too small for it."""

from __future__ import annotations

import torch

from twostage.errors import TwostageError
from twostage.ops.memory import out_of_memory


def of_one_photo(error: BaseException) -> bool:
    """Whether an error speaks of the photo at hand, so that others may be better, and not of a mistake in the
    program.
    """
    return isinstance(error, TwostageError | OSError) or out_of_memory(error)


def release_cached() -> None:
    """Gives memory back that PyTorch holds for later; the error's own tensors have to be gone by now."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
