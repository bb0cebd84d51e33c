"""How spread probabilities are, and the temperature that makes two kinds of logits equally spread.

Shapes: R rows of logits over K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from twostage.errors import TwostageError

COLDEST, HOTTEST = 1e-3, 1e4


def mean_entropy(logits: Tensor, temperature: float = 1.0) -> float:
    """Mean over the rows of (R, K) of the entropy of softmax(logits / temperature), in nats."""
    logs = (logits.double() / temperature).log_softmax(dim=1)
    return float(-torch.special.xlogy(logs.exp(), logs.exp()).sum(dim=1).mean())


def matching_temperature(logits: Tensor, entropy: float, tolerance: float = 1e-4) -> float:
    """The temperature at which the mean entropy of softmax(logits / temperature) is `entropy`.

    Entropy only grows with the temperature, so the interval [COLDEST, HOTTEST] is halved (in its logarithm)
    until the temperature is known to a relative `tolerance`. logits: (R, K), at least one row; entropy: nats.

    Raises:
        TwostageError: no row, one class only, or no temperature in the interval gives that entropy.
    """
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2:
        raise TwostageError(
            f"Calibration: expected (R, K) logits of at least one region and two classes, got "
            f"{tuple(logits.shape)}; take more photos, or another vocabulary."
        )
    least, most = mean_entropy(logits, COLDEST), mean_entropy(logits, HOTTEST)
    if not least <= entropy <= most:
        raise TwostageError(
            f"Calibration: temperatures from {COLDEST:g} to {HOTTEST:g} give mean entropies from {least:.4f} "
            f"to {most:.4f} nats, and {entropy:.4f} is asked for; at most {math.log(logits.shape[1]):.4f} is "
            "possible. Are these the logits of the right text?"
        )
    low, high = math.log(COLDEST), math.log(HOTTEST)
    while high - low > tolerance:
        middle = (low + high) / 2
        if mean_entropy(logits, math.exp(middle)) < entropy:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
