"""Ground truth as proposals: the upper bound of stage one, and the way to measure stage two alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from twostage.registry import ComponentError
from twostage.types import VOID, Proposals, TextBank
from twostage.vocabulary import Vocabulary


@dataclass(frozen=True)
class OracleConfig:
    """instances: False gives one mask a class present, True one mask for each connected part of a class;
    connectivity: 4, or 8 to join parts that touch at a corner; min_area: pixels, smaller masks are left out.
    """

    instances: bool = False
    connectivity: Literal[4, 8] = 8
    min_area: int = 1


class OracleProposals:
    """Masks cut from label maps: evaluation calls propose_from_labels instead of propose."""

    Config = OracleConfig
    needs_ground_truth = True

    def __init__(self, config: OracleConfig) -> None:
        if config.connectivity not in (4, 8):
            raise ComponentError(
                f"OracleProposals: connectivity has to be 4 or 8, got {config.connectivity}."
            )
        self.config = config

    @classmethod
    def tiny(cls) -> OracleProposals:
        """With its defaults."""
        return cls(OracleConfig())

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """Always raises ComponentError: an image alone does not show the truth."""
        raise ComponentError(
            "OracleProposals.propose: the oracle cuts its masks from ground truth, and images alone have "
            "none. Use it "
            "in evaluation on a data set with masks (propose_from_labels), or choose another proposal "
            "generator."
        )

    def propose_from_labels(self, labels: Tensor, vocabulary: Vocabulary | None = None) -> Proposals:
        """labels (H, W) of integers, VOID ignored -> masks (N, H, W) bool, classes ascending, scores 1.

        Raises:
            ComponentError: labels of another shape or kind, or beyond the vocabulary where one is given.
        """
        if labels.ndim != 2 or labels.dtype.is_floating_point:
            raise ComponentError(
                f"OracleProposals: expected labels (H, W) of integers, got {tuple(labels.shape)} "
                f"{labels.dtype}."
            )
        array = labels.detach().cpu().numpy()
        present = [int(label) for label in np.unique(array) if label != VOID]
        if vocabulary is not None and present and (present[0] < 0 or present[-1] >= len(vocabulary)):
            raise ComponentError(
                f"OracleProposals: labels {present[0]}..{present[-1]} for a vocabulary of "
                f"{len(vocabulary)} classes. "
                "Labels have to index the vocabulary given."
            )
        masks = [mask for label in present for mask in self._parts(array == label)]
        masks = [mask for mask in masks if mask.sum() >= self.config.min_area]
        stacked = np.stack(masks) if masks else np.zeros((0, *array.shape), dtype=bool)
        return Proposals(
            masks=torch.from_numpy(stacked).to(labels.device),
            scores=torch.ones(len(masks), device=labels.device),
            source="oracle",
        )

    def _parts(self, mask: np.ndarray) -> list[np.ndarray]:
        if not self.config.instances:
            return [mask]
        corners = 1 if self.config.connectivity == 4 else 2
        numbered, count = ndimage.label(mask, structure=ndimage.generate_binary_structure(2, corners))
        return [numbered == number for number in range(1, count + 1)]
