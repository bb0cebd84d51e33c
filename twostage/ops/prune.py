"""Which classes of a large vocabulary are worth asking for in an image, from scores of the whole image."""

from __future__ import annotations

import torch
from torch import Tensor

from twostage.errors import TwostageError


def classes_to_keep(
    scores: Tensor, share: float = 0.5, class_of: Tensor | None = None, num_classes: int | None = None
) -> Tensor:
    """The classes that an image may hold: those that score more than min + share * (max - min), as TagCLIP
    picks the tags to look at again; share 0 drops the lowest only.

    scores: (T,) of text rows, finite, higher for likelier; class_of, num_classes: (T,) int64, the class of
    each row, where classes have synonyms: a class counts by its best row. -> (K,) bool. Where none passes
    (all equal, a single class, share 1) all are kept, so that pruning never leaves an image without classes.

    Raises:
        TwostageError: scores are not one finite row, share is not in [0, 1], or class_of is of another
        length.
    """
    if scores.ndim != 1 or len(scores) == 0 or not bool(scores.isfinite().all()):
        raise TwostageError(
            f"classes_to_keep: scores should be a row of finite numbers, got {tuple(scores.shape)}; give the "
            "scores of one image."
        )
    if not 0 <= share <= 1:
        raise TwostageError(f"classes_to_keep: share should be from 0 to 1, got {share}.")
    if class_of is not None:
        if class_of.shape != scores.shape:
            raise TwostageError(
                f"classes_to_keep: class_of should name the class of all {len(scores)} rows, got "
                f"{tuple(class_of.shape)}; give the bank that the scores were made with."
            )
        total = int(class_of.max()) + 1 if num_classes is None else num_classes
        lowest = scores.new_full((total,), -torch.inf)
        scores = lowest.scatter_reduce(0, class_of.to(scores.device), scores, reduce="amax")
    known = scores[scores.isfinite()]
    kept = scores > known.min() + share * (known.max() - known.min())
    return kept if bool(kept.any()) else torch.ones_like(kept)


def pruned(logits: Tensor, keep: Tensor) -> Tensor:
    """(K, ...) logits and (K,) bool -> the same with -inf for the classes that are not kept.

    Raises:
        TwostageError: keep is of another length, or keeps nothing.
    """
    if keep.shape != logits.shape[:1] or not bool(keep.any()):
        raise TwostageError(
            f"pruned: keep should be {len(logits)} flags, at least one of them true, got {tuple(keep.shape)} "
            f"with {int(keep.sum())} true; use classes_to_keep."
        )
    return logits.masked_fill(~keep.reshape(-1, *([1] * (logits.ndim - 1))), -torch.inf)
