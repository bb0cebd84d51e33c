"""Encoding crops with the memory that there is: a batch that does not fit is halved, and all after it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.ops.memory import out_of_memory

logger = logging.getLogger(__name__)


class PatientEncoder:
    """Crops in, features out, in batches of a size that has proven to fit."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        """encode: (B, ...) -> (B, D), each row of its own crop alone."""
        self._encode = encode
        self._fits = 0  # 0: nothing has failed so far

    def __call__(self, crops: Tensor) -> Tensor:
        """(B, ...) -> (B, D).

        Raises:
            TwostageError: not even one crop fits.
        """
        size = self._fits or len(crops)
        made: list[Tensor] = []
        done = 0
        while done < len(crops):
            features = self._try(crops[done : done + size])
            if features is None:  # the error, with all that its frames hold, is gone by now
                size = self._fits = self._less(min(size, len(crops) - done))
                continue
            made.append(features)
            done += len(features)
        return torch.cat(made) if len(made) != 1 else made[0]

    def _try(self, crops: Tensor) -> Tensor | None:
        try:
            return self._encode(crops)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        return None

    def _less(self, size: int) -> int:
        if size <= 1:
            raise TwostageError(
                "CLIP ran out of memory on a single crop. Free memory on the device, use a smaller model or "
                "CLIP.DTYPE auto, or run with MODEL.DEVICE cpu."
            )
        logger.warning("Out of memory with %d crops in one batch: going on with %d.", size, size // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return size // 2
