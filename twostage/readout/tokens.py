"""Repairing and smoothing of patch tokens before and after the last block.

Shapes: B images, h x w grid, N = h * w patches, L = N + 1 tokens (row 0 is the class token), D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from twostage.ops.alike import filled, mean_of_alike
from twostage.ops.outliers import class_over_self, highest, local_outlier_factor
from twostage.readout.knobs import ClassOverSelf, LocalOutliers, Smoothing
from twostage.readout.record import Record


def outliers(record: Record, how: LocalOutliers | ClassOverSelf) -> Tensor:
    """(B, N) bool: patches that stand out, by the tokens entering the last block ("lof") or by the attention
    of the block before it ("class over self").
    """
    if isinstance(how, LocalOutliers):
        return highest(local_outlier_factor(record.entering[:, 1:], how.neighbours), how.share)
    assert record.looks is not None, "wanted() asks for them"
    return class_over_self(*record.looks, how.factor, how.most)


def repaired(
    record: Record, grid: tuple[int, int], how: LocalOutliers | ClassOverSelf, blocks: Iterable[int]
) -> Record:
    """The same record with outliers replaced by their neighbours' mean, in the tokens entering the last block
    and in those leaving `blocks`; what else is kept stays as it was.
    """
    found = outliers(record, how)

    def mended(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1], filled(tokens[:, 1:], found, grid)], dim=1)

    tokens = {block: mended(record.tokens[block]) for block in blocks}
    return replace(record, entering=mended(record.entering), tokens={**record.tokens, **tokens}, cosines={})


def smoothed(patches: Tensor, record: Record, smoothing: Smoothing) -> Tensor:
    """(B, N, D): every patch the mean of those like it."""
    return mean_of_alike(patches, record.likeness(smoothing.after), smoothing.cut)
