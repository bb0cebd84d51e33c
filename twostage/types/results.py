"""What an ensemble is given, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from twostage.types.base import require
from twostage.types.proposals import Proposals
from twostage.types.scores import DenseScores, RegionScores


@dataclass(frozen=True)
class Evidence:
    """Everything the ensemble may weigh for one image. Absent parts are None and are left out.

    proposals: masks at test size; stage_one: the proposal network's own class scores; regions: CLIP on crops;
    dense: CLIP per patch; pixels: a trained network per pixel; size_hw: the size of the label map to make
    (the original image's).
    """

    size_hw: tuple[int, int]
    proposals: Proposals | None = None
    stage_one: RegionScores | None = None
    regions: RegionScores | None = None
    dense: DenseScores | None = None
    pixels: DenseScores | None = None

    def of_classes(self, positions: Tensor) -> Evidence:
        """What every part says of these classes alone; positions: (M,) int64 in the vocabulary."""
        told = {name: getattr(self, name) for name in ("stage_one", "regions", "dense", "pixels")}
        kept = {name: part.of_classes(positions) for name, part in told.items() if part is not None}
        return replace(self, **kept)


@dataclass(frozen=True)
class Segmentation:
    """A label for every pixel.

    labels: (H, W) int32, index into the vocabulary or VOID; scores: (K, h, w) float32 class map, or None;
    confidence: (H, W) float32 in [0, 1], the share of the label in what all classes together got, or None;
    info: what a caller may want to know of its making (proposal count, timings), free of tensors.
    """

    labels: Tensor
    scores: Tensor | None = None
    confidence: Tensor | None = None
    info: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self.labels.ndim == 2, f"Segmentation.labels: expected (H, W), got {tuple(self.labels.shape)}"
        )
        require(
            not self.labels.dtype.is_floating_point,
            f"Segmentation.labels: expected integers, got {self.labels.dtype}",
        )
        require(
            self.confidence is None or self.confidence.shape == self.labels.shape,
            f"Segmentation.confidence: expected the labels' size {tuple(self.labels.shape)}",
        )
