"""The containers that travel between the stages: small, validated, with methods that return new objects.

Shapes: N proposals, K classes, T text rows (several may belong to one class), D joint embedding width, H x W
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from typing_extensions import Self

from twostage.errors import TwostageError

VOID = -1
"""The label of a pixel that no word claims, in memory. 255 and 65535 exist only inside the file readers."""


class ShapeError(TwostageError):
    """A container was given tensors that do not fit together."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


@dataclass(frozen=True)
class Proposals:
    """Masks of one image that nobody has named yet.

    masks: (N, H, W) float32 in [0, 1], or bool; scores: (N,) float32, larger is better;
    embeddings: (N, D) float32 or None, the stage's own class embedding of each mask;
    logits: RegionScores or None, the stage's own opinion of the classes it was asked about;
    source: the component that made them.
    """

    masks: Tensor
    scores: Tensor
    embeddings: Tensor | None = None
    logits: RegionScores | None = None
    source: str = ""

    def __post_init__(self) -> None:
        _require(self.masks.ndim == 3, f"Proposals.masks: expected (N, H, W), got {tuple(self.masks.shape)}")
        kind = self.masks.dtype
        _require(
            kind == torch.bool or kind.is_floating_point,
            f"Proposals.masks: expected bool or float, got {kind}",
        )
        count = len(self.masks)
        _require(
            self.scores.shape == (count,),
            f"Proposals.scores: expected ({count},), got {tuple(self.scores.shape)}",
        )
        if self.embeddings is not None:
            _require(
                self.embeddings.ndim == 2 and len(self.embeddings) == count,
                f"Proposals.embeddings: expected ({count}, D), got {tuple(self.embeddings.shape)}",
            )
        if self.logits is not None:
            _require(
                len(self.logits) == count, f"Proposals.logits: expected {count} rows, got {len(self.logits)}"
            )

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Proposals:
        index = _rows(index)
        return replace(
            self,
            masks=self.masks[index],
            scores=self.scores[index],
            embeddings=None if self.embeddings is None else self.embeddings[index],
            logits=None if self.logits is None else self.logits[index],
        )

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the masks in pixels."""
        return self.masks.shape[-2], self.masks.shape[-1]

    def to(self, device: torch.device | str) -> Proposals:
        """The same proposals on another device."""
        return replace(
            self,
            masks=self.masks.to(device),
            scores=self.scores.to(device),
            embeddings=None if self.embeddings is None else self.embeddings.to(device),
            logits=None if self.logits is None else self.logits.to(device),
        )


@dataclass(frozen=True)
class TextBank:
    """What the text tower says of a vocabulary, ready to be compared with image features.

    features: (T, D) float32, rows of length one; class_of: (T,) int64, class of a row (synonyms share one);
    num_classes: K; logit_scale: factor on cosines (the paper's constant is 100);
    no_object: (D,) float32 of length one, or None.
    """

    features: Tensor
    class_of: Tensor
    num_classes: int
    logit_scale: float = 100.0
    no_object: Tensor | None = None

    def __post_init__(self) -> None:
        rows = len(self.features)
        _require(
            self.features.ndim == 2 and rows > 0,
            f"TextBank.features: expected (T, D) with T > 0, got {tuple(self.features.shape)}",
        )
        _require(
            self.class_of.shape == (rows,),
            f"TextBank.class_of: expected ({rows},), got {tuple(self.class_of.shape)}",
        )
        found = torch.unique(self.class_of.cpu())
        _require(
            torch.equal(found, torch.arange(self.num_classes)),
            f"TextBank.class_of: every class of 0..{self.num_classes - 1} needs a row",
        )
        if self.no_object is not None:
            _require(
                self.no_object.shape == (self.dim,),
                f"TextBank.no_object: expected ({self.dim},), got {tuple(self.no_object.shape)}",
            )

    @property
    def dim(self) -> int:
        """D, the width of the joint space."""
        return self.features.shape[1]

    def logits(self, unit_features: Tensor) -> Tensor:
        """logit_scale x cosine, (..., D) -> (..., K); a class with synonyms takes its best row."""
        rows = self.logit_scale * (unit_features @ self.features.T.to(unit_features.dtype))
        if len(self.features) == self.num_classes:
            return rows[..., torch.argsort(self.class_of)] if not self._in_order else rows
        out = rows.new_full((*rows.shape[:-1], self.num_classes), -torch.inf)
        index = self.class_of.expand(rows.shape)
        return out.scatter_reduce(-1, index, rows, reduce="amax")

    def subset(self, classes: Sequence[int]) -> TextBank:
        """The rows of these classes alone, which are renumbered in this order.

        Raises:
            ShapeError: no class is asked for, or one that is not there.
        """
        _require(len(classes) > 0, "TextBank.subset: the class list is empty: ask for at least one class")
        _require(
            min(classes) >= 0 and max(classes) < self.num_classes,
            f"TextBank.subset: expected classes of 0..{self.num_classes - 1}, got {[*classes]}",
        )
        place = torch.full((self.num_classes,), -1, device=self.class_of.device)
        place[list(classes)] = torch.arange(len(classes), device=place.device)
        rows = place[self.class_of] >= 0
        return replace(
            self,
            features=self.features[rows],
            class_of=place[self.class_of[rows]],
            num_classes=len(classes),
        )

    @property
    def _in_order(self) -> bool:
        return torch.equal(self.class_of.cpu(), torch.arange(self.num_classes))

    def to(self, device: torch.device | str) -> TextBank:
        """The same bank on another device."""
        return replace(
            self,
            features=self.features.to(device),
            class_of=self.class_of.to(device),
            no_object=None if self.no_object is None else self.no_object.to(device),
        )


@dataclass(frozen=True)
class RegionScores:
    """One classifier's opinion of each proposal.

    logits: (N, K) float32; valid: (N,) bool, False where the mask was empty (the row is kept, its
    numbers mean nothing); no_object: (N,) float32 logit of "none of these", or None; image: (K,) float32, the
    same classifier's logits of the whole image, or None where it does not look at that.
    """

    logits: Tensor
    valid: Tensor
    no_object: Tensor | None = None
    image: Tensor | None = None

    def __post_init__(self) -> None:
        _require(
            self.logits.ndim == 2, f"RegionScores.logits: expected (N, K), got {tuple(self.logits.shape)}"
        )
        count = len(self.logits)
        _require(
            self.valid.shape == (count,) and self.valid.dtype == torch.bool,
            f"RegionScores.valid: expected ({count},) bool, got {tuple(self.valid.shape)} {self.valid.dtype}",
        )
        if self.no_object is not None:
            _require(
                self.no_object.shape == (count,),
                f"RegionScores.no_object: expected ({count},), got {tuple(self.no_object.shape)}",
            )
        _require_image("RegionScores", self.image, self.logits.shape[1])

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> RegionScores:
        index = _rows(index)
        no_object = None if self.no_object is None else self.no_object[index]
        return replace(self, logits=self.logits[index], valid=self.valid[index], no_object=no_object)

    def of_classes(self, positions: Tensor) -> RegionScores:
        """The opinion of these classes alone; positions: (M,) int64 in the vocabulary."""
        image = None if self.image is None else self.image[positions]
        return replace(self, logits=self.logits[:, positions], image=image)

    def probs(self) -> Tensor:
        """(N, K): softmax over the K classes and "no object" where it is known (dropped *after* the softmax).

        This one place settles the difference between stage one (K + 1) and stage two (K).
        """
        if self.no_object is None:
            return self.logits.float().softmax(dim=-1)
        return torch.cat([self.logits, self.no_object[:, None]], dim=1).float().softmax(dim=-1)[:, :-1]

    def to(self, device: torch.device | str) -> RegionScores:
        """The same scores on another device."""
        return RegionScores(
            self.logits.to(device),
            self.valid.to(device),
            None if self.no_object is None else self.no_object.to(device),
            None if self.image is None else self.image.to(device),
        )


@dataclass(frozen=True)
class DenseScores:
    """Class logits for every place of a grid over the whole image.

    logits: (K, h, w) float32 at any resolution; image: (K,) float32 logits of the image as a whole, on the
    same scale, or None.
    """

    logits: Tensor
    image: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require(
            self.logits.ndim == 3, f"DenseScores.logits: expected (K, h, w), got {tuple(self.logits.shape)}"
        )
        _require_image(type(self).__name__, self.image, len(self.logits))

    def of_classes(self, positions: Tensor) -> Self:
        """The same map of these classes alone; positions: (M,) int64 in the vocabulary."""
        image = None if self.image is None else self.image[positions]
        return replace(self, logits=self.logits[positions], image=image)

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        image = None if self.image is None else self.image.to(device)
        return replace(self, logits=self.logits.to(device), image=image)


@dataclass(frozen=True)
class WordScores(DenseScores):
    """The same with what every word got, before a class takes its best.

    logits: (K, h, w) float32, the largest over a class's rows; rows: (T, h, w) float32, a map for each row of
    the text bank (the same tensor as logits where every class has one row, in order); class_of: (T,) int64,
    the class of each row.
    """

    rows: Tensor
    class_of: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.rows.ndim == 3 and self.rows.shape[1:] == self.logits.shape[1:],
            f"WordScores.rows: expected (T, {self.logits.shape[1]}, {self.logits.shape[2]}), "
            f"got {tuple(self.rows.shape)}",
        )
        _require(
            self.class_of.shape == self.rows.shape[:1],
            f"WordScores.class_of: expected ({len(self.rows)},), got {tuple(self.class_of.shape)}",
        )

    def of_classes(self, positions: Tensor) -> Self:
        """The same map of these classes alone, with their words; positions: (M,) int64 in the vocabulary."""
        kept = super().of_classes(positions)
        own = torch.isin(self.class_of, positions)
        number = torch.full((len(self.logits),), -1, dtype=torch.int64, device=positions.device)
        number[positions] = torch.arange(len(positions), device=positions.device)
        rows = kept.logits if self.rows is self.logits else self.rows[own]
        return replace(kept, rows=rows, class_of=number[self.class_of[own]])

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        moved = super().to(device)
        rows = moved.logits if self.rows is self.logits else self.rows.to(device)
        return replace(moved, rows=rows, class_of=self.class_of.to(device))


@dataclass(frozen=True)
class PixelScores(DenseScores):
    """A trained network's class logits on a grid of cells that begins at the top left corner of the image.

    logits: (K, h, w) float32; stride: side of a cell in pixels; image_hw: the image in these pixels, which
    the last rows and columns of cells may reach beyond; embeddings: (D, h, w) float32, or None. Where they
    are given the logits are cosines with them, meant to be taken anew from the enlarged embeddings.
    """

    stride: int = 1
    image_hw: tuple[int, int] = (0, 0)
    embeddings: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        grid, image = self.logits.shape[1:], self.image_hw
        _require(
            all(0 < pixels <= cells * self.stride for pixels, cells in zip(image, grid, strict=True)),
            f"PixelScores: {tuple(grid)} cells of {self.stride} pixels do not cover an image of {image}",
        )
        if self.embeddings is not None:
            _require(
                self.embeddings.ndim == 3 and self.embeddings.shape[1:] == grid,
                f"PixelScores.embeddings: expected (D, {grid[0]}, {grid[1]}), "
                f"got {tuple(self.embeddings.shape)}",
            )

    def to(self, device: torch.device | str) -> Self:
        """The same scores on another device."""
        moved = super().to(device)
        return moved if self.embeddings is None else replace(moved, embeddings=self.embeddings.to(device))


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
        _require(
            self.labels.ndim == 2, f"Segmentation.labels: expected (H, W), got {tuple(self.labels.shape)}"
        )
        _require(
            not self.labels.dtype.is_floating_point,
            f"Segmentation.labels: expected integers, got {self.labels.dtype}",
        )
        _require(
            self.confidence is None or self.confidence.shape == self.labels.shape,
            f"Segmentation.confidence: expected the labels' size {tuple(self.labels.shape)}",
        )


def _require_image(owner: str, image: Tensor | None, classes: int) -> None:
    _require(
        image is None or image.shape == (classes,),
        f"{owner}.image: expected ({classes},), got {None if image is None else tuple(image.shape)}",
    )


def _rows(index: Tensor | slice | Sequence[int]) -> Tensor | slice:
    """Anything that picks rows, in the form a tensor understands."""
    if isinstance(index, (slice, Tensor)):
        return index
    return torch.as_tensor(index, dtype=torch.long)
