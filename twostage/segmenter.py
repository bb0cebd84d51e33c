"""The two-stage flow itself: propose, classify, look densely, merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from twostage.errors import TwostageError
from twostage.interfaces import DenseHead, Ensemble, ProposalGenerator, RegionClassifier, RegionDenseHead
from twostage.skipping import Skip, classify_few, require_bounds
from twostage.test_time import Album, TestTime, scoring
from twostage.types import DenseScores, Evidence, Proposals, RegionScores, Segmentation, TextBank
from twostage.views import TestSize, View
from twostage.vocabulary import Vocabulary

PIXELS_AT_ONCE = 640 * 640
"""Views of one size go through the parts together up to this many pixels."""
Given = Callable[[View], Proposals]
"""Masks of what is seen in a view, in place of stage one's."""


@dataclass(frozen=True)
class Words:
    """A vocabulary with its text features. stage_one: others for stage one where its prompts differ."""

    vocabulary: Vocabulary
    text: TextBank
    stage_one: TextBank | None = None


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
    size: TestSize = field(default_factory=TestSize)
    device: torch.device | None = None
    """Where the photos are looked at and merged, the parts' own device; None leaves them where they are."""
    pixels: DenseHead | None = None
    """A trained network that names pixels, in the place of stage one."""
    test_time: TestTime = field(default_factory=TestTime)
    """Further views of each photo and what is done with them."""
    skip: Skip = field(default_factory=Skip)
    """Masks that the classifier need not look at."""

    def __post_init__(self) -> None:
        if self.proposals is None and self.dense is None and self.pixels is None:
            raise TwostageError(
                "A segmenter needs proposals, a dense head or a per-pixel network: set PROPOSALS.NAME, "
                "DENSE.NAME or PIXELS.NAME (see `twostage components`)."
            )
        for slot, head in (("DENSE", self.dense), ("PIXELS", self.pixels)):
            if self.proposals is None and getattr(head, "wants_regions", False):
                raise TwostageError(
                    f"{slot}.NAME: {type(head).__name__} as it is set up looks along the masks of "
                    "stage one, and there is none: set PROPOSALS.NAME, or choose a preset without regions."
                )
        if not self.test_time.plain:
            scoring(self.ensemble)
        if self.skip.bounded and self.classifier is not None:
            require_bounds(self.ensemble, self.classifier)
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
        """Everything the parts say of these photos; with skip.bounded, for the labels of the segmenter's own
        ensemble alone.

        images: RGB uint8 (3, H, W) at their own sizes; given: masks at test size in place of stage one's.
        """
        seen_at = [self._at_size(image, self.size) for image in images]
        sizes_hw = [(image.shape[1], image.shape[2]) for image in images]
        # What settles the labels of one view does not settle the mean of several.
        asked = self if self.test_time.plain else self.for_any_ensemble()
        return asked._evidence(seen_at, sizes_hw, words, given)

    def for_any_ensemble(self) -> Segmenter:
        """The same flow, whose evidence serves other ensembles too: nothing is left out for one's sake."""
        return replace(self, skip=replace(self.skip, bounded=False))

    def _evidence(
        self,
        seen_at: Sequence[Tensor],
        sizes_hw: Sequence[tuple[int, int]],
        words: Words,
        given: Sequence[Proposals] | None,
    ) -> list[Evidence]:
        """seen_at: photos as the parts get them; sizes_hw: of the label maps to make."""
        proposals: Sequence[Proposals] | None = given
        if proposals is None and self.proposals is not None:
            proposals = self.proposals.propose(seen_at, words.stage_one or words.text)
        if proposals is not None and self.device is not None:
            proposals = [found.to(self.device) for found in proposals]  # some come from files
        dense = pixels = None
        if self.dense is not None:
            dense = _look(self.dense, seen_at, words.text, proposals)
        if self.pixels is not None:
            pixels = _look(self.pixels, seen_at, words.stage_one or words.text, proposals)
        known = [
            Evidence(
                size_hw=size_hw,
                proposals=proposals[i] if proposals is not None else None,
                stage_one=proposals[i].logits if proposals is not None else None,
                dense=dense[i] if dense is not None else None,
                pixels=pixels[i] if pixels is not None else None,
            )
            for i, size_hw in enumerate(sizes_hw)
        ]
        if proposals is None or self.classifier is None:
            return known
        regions = self._classify(seen_at, proposals, words, known)
        return [replace(one, regions=part) for one, part in zip(known, regions, strict=True)]

    def _classify(
        self, seen_at: Sequence[Tensor], proposals: Sequence[Proposals], words: Words, known: list[Evidence]
    ) -> list[RegionScores]:
        assert self.classifier is not None
        if self.skip.nothing:
            return self.classifier.classify(seen_at, proposals, words.text)
        few = (self.skip, self.classifier, seen_at, words.text, known, self.ensemble, words.vocabulary)
        return classify_few(*few)

    def _at_size(self, image: Tensor, size: TestSize) -> Tensor:
        small = size.resize(image)
        return small if self.device is None else small.to(self.device)

    def segment(
        self, images: Sequence[Tensor], words: Words, image_ids: Sequence[str] | None = None
    ) -> list[Segmentation]:
        """RGB uint8 photos (3, H, W) -> label maps at the photos' own sizes.

        image_ids: their names, for a stage one that keeps masks by name (`stored`); "" where one has none.
        """
        kept = [
            self.stored(image, image_id)
            for image, image_id in zip(images, image_ids or [""] * len(images), strict=True)
        ]
        if not self.test_time.plain:
            return [
                self.label(image, words, {"": self.ensemble}, given=given)[""]
                for image, given in zip(images, kept, strict=True)
            ]
        masks = None
        if kept and all(kept):
            masks = [given(self.whole(image)) for image, given in zip(images, kept, strict=True) if given]
        found = self.gather(images, words, masks)
        return [self.ensemble.merge(evidence, words.vocabulary) for evidence in found]

    def stored(self, image: Tensor, image_id: str) -> Given | None:
        """The masks that stage one keeps of a photo, by its pixels or name; None where it finds them anew.

        A stage one that keeps masks has `find` and `propose_for` (see proposals/cached.py).
        """
        keeper: Any = self.proposals
        if not image_id or not hasattr(keeper, "find"):
            return None
        known = keeper.find(self.size.resize(image), image_id)

        def of(view: View) -> Proposals:
            whole: Proposals = keeper.propose_for([known], [view.size_hw])[0]
            return replace(whole, masks=view.look(whole.masks))

        return of

    def whole(self, image: Tensor) -> View:
        """The plain look at a photo, all of it at test size."""
        height, width = self.size.resize(image).shape[-2:]
        return View((height, width), (0, 0, height, width))

    @torch.inference_mode()
    def label(
        self,
        image: Tensor,
        words: Words,
        ensembles: Mapping[str, Ensemble],
        known: Evidence | None = None,
        given: Given | None = None,
    ) -> dict[str, Segmentation]:
        """What several ensembles make of one photo, RGB uint8 (3, H, W), with all that `test_time` adds.

        known: what `gather` says of this photo, where that has been asked already.
        """
        size_hw = (image.shape[1], image.shape[2])
        device = image.device if self.device is None else self.device
        album = Album(self.test_time, ensembles, len(words.vocabulary), size_hw, device)
        for view, evidence in self._looks(image, words, known, given):
            placed = replace(evidence, size_hw=album.place(view))
            for name, ensemble in album.ensembles.items():
                album.paste(name, view, ensemble.merge(placed, words.vocabulary))
        return {name: album.settle(name, image) for name in ensembles}

    def _looks(
        self, image: Tensor, words: Words, known: Evidence | None, given: Given | None
    ) -> Iterator[tuple[View, Evidence]]:
        """Every view with what the parts say of it; small views are looked at several at once."""
        for number, size in enumerate(self.test_time.views.sizes or (self.size,)):
            whole = self._at_size(image, size)
            views = self.test_time.views.of(number, (whole.shape[1], whole.shape[2]))
            if known is not None and size == self.size:
                yield from ((view, known) for view in views if view.is_whole)
                views = [view for view in views if not view.is_whole]
            while views:
                height, width = views[0].seen_hw
                many = max(1, PIXELS_AT_ONCE // (height * width))
                group, views = views[:many], views[many:]
                masks = None if given is None else [given(view) for view in group]
                seen_at = [view.look(whole) for view in group]
                found = self.for_any_ensemble()._evidence(
                    seen_at, [(height, width)] * len(group), words, masks
                )
                yield from zip(group, found, strict=True)


def _look(
    head: DenseHead, images: Sequence[Tensor], text: TextBank, proposals: Sequence[Proposals] | None
) -> list[DenseScores]:
    """What a dense head says, with the masks where it looks along them."""
    if not getattr(head, "wants_regions", False):
        return head.predict(images, text)
    assert proposals is not None  # the segmenter has a stage one, or was not made
    guided = cast(RegionDenseHead, head)
    return guided.predict(images, text, proposals)
