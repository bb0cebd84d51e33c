"""What a data set gives: one photo with its label map; and what training eats: a batch of them with masks
cut out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from twostage.vocabulary import Vocabulary


@dataclass(frozen=True)
class Sample:
    """One photo.

    image: (3, H, W) uint8 RGB; labels: (H, W) int32, index into the data set's vocabulary or -1 (ignore), or
    None where there is no ground truth; image_id: unique in its data set and usable as a file name; source:
    the file the image came from, for messages, or "".
    """

    image: Tensor
    labels: Tensor | None
    image_id: str
    source: str = ""


class SegmentationDataset(Protocol):
    """A sequence of samples with a vocabulary. Reading one sample must not depend on the others (workers
    share it).

    A data set may also have `subsets`, name -> positions in the vocabulary, which reports show beside seen
    and unseen; and `classes_present()`, the classes of each photo in order, which spares reading label maps.
    """

    name: str
    vocabulary: Vocabulary

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class TrainBatch:
    """B training crops of one size.

    images: (B, 3, H, W) uint8 RGB; masks: B tensors (M_b, H, W) bool, one mask for each class present;
    classes: B tensors (M_b,) int64, index into the training vocabulary (the seen classes in order);
    labels: (B, H, W) int64 of the same indices, -1 ignored; image_ids: B names, for messages.
    M_b may be 0.
    """

    images: Tensor
    masks: list[Tensor]
    classes: list[Tensor]
    labels: Tensor
    image_ids: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, part: slice) -> TrainBatch:
        """A part of the batch, for gradient accumulation."""
        return TrainBatch(
            self.images[part], self.masks[part], self.classes[part], self.labels[part], self.image_ids[part]
        )
