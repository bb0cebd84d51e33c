"""The two-stage flow itself: propose, classify, look densely, merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twostage.data.transforms import resize_for_test
from twostage.errors import TwostageError
from twostage.interfaces import DenseHead, Ensemble, ProposalGenerator, RegionClassifier
from twostage.types import Evidence, Proposals, Segmentation, TextBank
from twostage.vocabulary import Vocabulary


@dataclass(frozen=True)
class Words:
    """A vocabulary with its text features. stage_one: others for stage one where its prompts differ."""

    vocabulary: Vocabulary
    text: TextBank
    stage_one: TextBank | None = None


@dataclass(frozen=True)
class TestSize:
    """Shorter edge of a photo when it is looked at, and the longest longer edge; 0 keeps the size."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    min_size: int = 640
    max_size: int = 2560

    def resize(self, image: Tensor) -> Tensor:
        """RGB uint8 (3, H, W) -> the same photo at test size."""
        return resize_for_test(image, self.min_size, self.max_size) if self.min_size else image


@dataclass(frozen=True)
class Segmenter:
    """Any proposals, any classifier, any dense head, any ensemble; what is None is left out.

    Raises:
        TwostageError: nothing that could speak of pixels is there, or the ensemble does not listen to it.
    """

    ensemble: Ensemble
    proposals: ProposalGenerator | None = None
    classifier: RegionClassifier | None = None
    dense: DenseHead | None = None
    size: TestSize = TestSize()
    device: torch.device | None = None
    """Where the photos are looked at and merged, the parts' own device; None leaves them where they are."""
    pixels: DenseHead | None = None
    """A trained network that names pixels, in the place of stage one."""

    def __post_init__(self) -> None:
        if self.proposals is None and self.dense is None and self.pixels is None:
            raise TwostageError(
                "A segmenter needs proposals, a dense head or a per-pixel network: set PROPOSALS.NAME, "
                "DENSE.NAME or PIXELS.NAME (see `twostage components`)."
            )
        heard = getattr(self.ensemble, "weighs", None)
        if heard is not None and self.pixels is not None and "pixels" not in heard:
            raise TwostageError(
                f"{type(self.ensemble).__name__} weighs {', '.join(heard)}, not a per-pixel network: set "
                "ENSEMBLE.NAME per_pixel, or leave PIXELS.NAME empty."
            )
        if (
            heard is not None
            and self.dense is None
            and self.pixels is None
            and set(heard) <= {"pixels", "dense"}
        ):
            raise TwostageError(
                f"{type(self.ensemble).__name__} weighs {', '.join(heard)}, and there is neither: set "
                "PIXELS.NAME or DENSE.NAME, or choose another ENSEMBLE.NAME."
            )

    @torch.inference_mode()
    def gather(
        self, images: Sequence[Tensor], words: Words, given: Sequence[Proposals] | None = None
    ) -> list[Evidence]:
        """Everything the parts say of these photos.

        images: RGB uint8 (3, H, W) at their own sizes; given: masks at test size in place of stage one's.
        """
        seen_at = [self._at_size(image) for image in images]
        proposals: Sequence[Proposals] | None = given
        if proposals is None and self.proposals is not None:
            proposals = self.proposals.propose(seen_at, words.stage_one or words.text)
        if proposals is not None and self.device is not None:
            proposals = [found.to(self.device) for found in proposals]  # some come from files
        regions = dense = pixels = None
        if proposals is not None and self.classifier is not None:
            regions = self.classifier.classify(seen_at, proposals, words.text)
        if self.dense is not None:
            dense = self.dense.predict(seen_at, words.text)
        if self.pixels is not None:
            pixels = self.pixels.predict(seen_at, words.stage_one or words.text)
        return [
            Evidence(
                size_hw=(image.shape[1], image.shape[2]),
                proposals=proposals[i] if proposals is not None else None,
                stage_one=proposals[i].logits if proposals is not None else None,
                regions=regions[i] if regions is not None else None,
                dense=dense[i] if dense is not None else None,
                pixels=pixels[i] if pixels is not None else None,
            )
            for i, image in enumerate(images)
        ]

    def _at_size(self, image: Tensor) -> Tensor:
        small = self.size.resize(image)
        return small if self.device is None else small.to(self.device)

    def segment(self, images: Sequence[Tensor], words: Words) -> list[Segmentation]:
        """RGB uint8 photos (3, H, W) -> label maps at the photos' own sizes."""
        return [self.ensemble.merge(evidence, words.vocabulary) for evidence in self.gather(images, words)]
