"""The roles a component can play. Lists in, lists out, same order and length; images are RGB uint8 (3, H,
W).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from twostage.types import DenseScores, Evidence, Proposals, RegionScores, Segmentation, TextBank
from twostage.vocabulary import Vocabulary


@runtime_checkable
class ProposalGenerator(Protocol):
    """Stage one: finds masks without naming them."""

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) at test size -> proposals with masks of that very size.

        A generator that can name its masks fills Proposals.logits for the classes of `text`; others ignore
        it.
        """
        ...


@runtime_checkable
class RegionClassifier(Protocol):
    """Stage two: names masks."""

    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        """One RegionScores an image with one row a proposal, empty masks included (valid is False there)."""
        ...


@runtime_checkable
class DenseHead(Protocol):
    """Names patches directly."""

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        """One (K, h, w) map of logits an image, at the head's own resolution, covering the whole image.

        A head that looks along masks has an attribute `wants_regions` that is True, and is called with stage
        one's as a third argument (see `RegionDenseHead`).
        """
        ...


@runtime_checkable
class RegionDenseHead(Protocol):
    """A dense head that looks along stage one's masks, for as long as `wants_regions` is True."""

    @property
    def wants_regions(self) -> bool: ...

    def predict(
        self, images: Sequence[Tensor], text: TextBank, proposals: Sequence[Proposals]
    ) -> list[DenseScores]:
        """As DenseHead.predict; proposals: one an image, masks of its size, possibly none or empty ones."""
        ...


@runtime_checkable
class Ensemble(Protocol):
    """Weighs the evidence and labels the pixels."""

    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        """Labels of evidence.size_hw. Must not change the evidence."""
        ...


class LabelBounds(Protocol):
    """What is known of the labels of one picture, as more and more masks are looked at."""

    def tell(self, regions: RegionScores, looked: Tensor) -> None:
        """The classifier's scores so far; looked: (N,) bool, the rows that count."""
        ...

    @property
    def spare(self) -> Tensor:
        """(N,) float32, the most that each mask may still add to the score of a class where it is 1."""
        ...

    def unsettled(self) -> Tensor:
        """(P,) int64, row * width + column: the pixels whose label may still change."""
        ...

    def still_unsettled(self, among: Tensor) -> Tensor:
        """Those of an earlier answer whose label may still change."""
        ...


@runtime_checkable
class BoundingEnsemble(Protocol):
    """An ensemble that can tell which labels are settled before all masks have been classified."""

    def pixel_bounds(self, evidence: Evidence, vocabulary: Vocabulary) -> LabelBounds:
        """evidence: everything but `regions`."""
        ...


@runtime_checkable
class ImageTextModel(Protocol):
    """The part of CLIP that components need; twostage.clip.model.ClipModel is the one implementation."""

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    @property
    def dim(self) -> int: ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> (B, D) float32 rows of length one."""
        ...


@runtime_checkable
class Task(Protocol):
    """What the engine can train."""

    @property
    def module(self) -> nn.Module:
        """The trainable network, on its device; `losses` uses this very object."""
        ...

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; the engine adds them up."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: params, lr factor, weight decay, and a name."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """What a checkpoint stores of the model: "model" with its tensors, and plain data such as the
        vocabulary.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any], where: str, resuming: bool) -> None:
        """Takes back what state_dict() gave, strictly; `where` is the file, for messages.

        resuming: the same training goes on, so that the plain data has to agree too.
        """
        ...
