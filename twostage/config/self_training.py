"""Options of self-training."""

from __future__ import annotations

from dataclasses import dataclass

from twostage.config.option import option


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Learning from one's own labels of the unseen classes (TASK self_training)."""

    prior: bool = option(
        True, "Label what has no seen ground truth with unseen classes only; false: with any"
    )
    reject_threshold: float = option(0.0, "Pixels whose label is less probable become void", least=0, most=1)
