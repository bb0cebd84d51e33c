"""MaskCLIP's two refinements of dense scores (Zhou et al., 2022, section 3.2).

Shapes: B images, N places, K classes, D key width. Scores are cosines, so the sharpness of CLIP's softmax is
given here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

SHARPNESS = 100.0
ABSENT = -100.0
"""The cosine that a class gets everywhere when prompt denoising finds it nowhere in the image."""

KeyNorm = Literal["channels", "tokens"]


def denoise_prompts(scores: Tensor, threshold: float) -> Tensor:
    """(B, N, K) -> (B, N, K): classes that reach a probability of `threshold` nowhere in the image are set to
    ABSENT."""
    best = (SHARPNESS * scores).softmax(dim=-1).amax(dim=1, keepdim=True)
    return scores.masked_fill(best < threshold, ABSENT)


def smooth_by_keys(scores: Tensor, keys: Tensor, threshold: float, norm: KeyNorm = "channels") -> Tensor:
    """(B, N, K) cosines and (B, N, D) keys -> (B, N, K) class votes, not normalised.

    Places whose best probability is below `threshold` take the sum of all places' probabilities, weighted by
    how alike their keys are; the others keep their own. norm: "channels" makes the weights cosines; "tokens"
    normalises every channel over the places instead, as the released code does.
    """
    probabilities = (SHARPNESS * scores).softmax(dim=-1)
    unit = F.normalize(keys.float(), dim=-1 if norm == "channels" else 1)
    voted = unit @ (unit.transpose(1, 2) @ probabilities)  # the same as (k k^T) p without the N x N matrix
    unsure = probabilities.amax(dim=-1, keepdim=True) < threshold
    return torch.where(unsure, voted, probabilities)


def votes_to_logits(votes: Tensor) -> Tensor:
    """(..., K) votes -> logits whose softmax is the share of each class; opposed (negative) votes count as
    none."""
    positive = votes.clamp_min(1e-6)
    return (positive / positive.sum(dim=-1, keepdim=True)).log()


def refined(scores: Tensor, keys: Callable[[], Tensor], options: Mapping[str, Any], scale: float) -> Tensor:
    """(B, N, K) cosines -> (B, N, K) logits, with the refinements that `options` ask for: prompt_denoise and
    key_smooth, thresholds that 0 switches off, and key_norm.

    keys: makes the places' keys where they are needed. Logits are cosines times `scale`, or, smoothed,
    logarithms of probabilities at sharpness 100.
    """
    if options["prompt_denoise"] > 0:
        scores = denoise_prompts(scores, options["prompt_denoise"])
    if options["key_smooth"] > 0:
        return votes_to_logits(smooth_by_keys(scores, keys(), options["key_smooth"], options["key_norm"]))
    return scores * scale
