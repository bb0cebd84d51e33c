"""The flow: who is asked, with what, at which size, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_parts import Colours, Strips, bank
from torch import Tensor

from twostage.ensembles.geometric import GeometricEnsemble
from twostage.ensembles.per_pixel import PerPixelEnsemble
from twostage.errors import TwostageError
from twostage.interfaces import RegionDenseHead
from twostage.segmenter import Segmenter, Words
from twostage.types import DenseScores, Evidence, Proposals, RegionScores, Segmentation, TextBank
from twostage.views import TestSize
from twostage.vocabulary import Vocabulary

WORDS = Words(Vocabulary.from_words("a, b, c, d"), bank(4))
PHOTOS = [torch.full((3, 20, 30), 40, dtype=torch.uint8), torch.full((3, 50, 25), 90, dtype=torch.uint8)]


class Recorder:
    """Plays every role and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def _note(self, role: str, images: Sequence[Tensor], *rest: Any) -> None:
        self.calls.append((role, ([tuple(image.shape[1:]) for image in images], *rest)))
        self.devices = {image.device.type for image in images}
        self.grad = torch.is_grad_enabled()

    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        self._note("propose", images, text)
        names = RegionScores(torch.zeros(2, 4), torch.ones(2, dtype=torch.bool))
        return [Proposals(torch.ones(2, *image.shape[1:]), torch.ones(2), logits=names) for image in images]

    def classify(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals], text: TextBank
    ) -> list[RegionScores]:
        self._note("classify", images, [found.size_hw for found in proposals], text)
        return [RegionScores(torch.ones(len(p), 4), torch.ones(len(p), dtype=torch.bool)) for p in proposals]

    def predict(self, images: Sequence[Tensor], text: TextBank) -> list[DenseScores]:
        self._note("predict", images, text)
        return [DenseScores(torch.full((4, 1, 1), float(place))) for place in range(len(images))]

    def merge(self, evidence: Evidence, vocabulary: Vocabulary) -> Segmentation:
        self.calls.append(("merge", (evidence, vocabulary)))
        return Segmentation(torch.zeros(evidence.size_hw, dtype=torch.int32))


def test_everyone_is_asked_once_at_test_size() -> None:
    recorder, own = Recorder(), bank(4, dim=5)
    segmenter = Segmenter(recorder, recorder, recorder, recorder, TestSize(10, 18))
    words = Words(WORDS.vocabulary, WORDS.text, own)
    results = segmenter.segment(PHOTOS, words)
    small = [(10, 15), (18, 9)]  # short edge 10; the second is too long for that
    assert [role for role, _ in recorder.calls] == ["propose", "predict", "classify", "merge", "merge"]
    assert recorder.calls[0][1] == (small, own)
    assert recorder.calls[1][1] == (small, WORDS.text)
    assert recorder.calls[2][1] == (small, small, WORDS.text)
    assert [tuple(result.labels.shape) for result in results] == [(20, 30), (50, 25)]
    assert not recorder.grad
    for place, (evidence, vocabulary) in enumerate(call for _, call in recorder.calls[3:]):
        assert evidence.size_hw == tuple(PHOTOS[place].shape[1:])
        assert evidence.stage_one is evidence.proposals.logits
        assert evidence.regions.logits.shape == (2, 4)
        assert float(evidence.dense.logits[0]) == place
        assert vocabulary is words.vocabulary


def test_without_words_of_its_own_stage_one_gets_clips() -> None:
    recorder = Recorder()
    Segmenter(recorder, recorder).segment(PHOTOS[:1], WORDS)
    assert recorder.calls[0][1][1] is WORDS.text


@pytest.mark.parametrize(
    ("slots", "present"),
    [
        (("proposals",), {"proposals", "stage_one"}),
        (("proposals", "classifier"), {"proposals", "stage_one", "regions"}),
        (("dense",), {"dense"}),
        (("classifier", "dense"), {"dense"}),
        (("proposals", "dense"), {"proposals", "stage_one", "dense"}),
        (("pixels",), {"pixels"}),
        (("pixels", "dense"), {"pixels", "dense"}),
    ],
)
def test_what_is_left_out_stays_none(slots: tuple[str, ...], present: set[str]) -> None:
    recorder = Recorder()
    segmenter = Segmenter(recorder, **dict.fromkeys(slots, recorder), size=TestSize(0))  # type: ignore[arg-type]
    [evidence] = segmenter.gather(PHOTOS[:1], WORDS)
    parts = ("proposals", "stage_one", "regions", "dense", "pixels")
    assert {name for name in parts if getattr(evidence, name) is not None} == present
    assert recorder.calls[0][1][0] == [(20, 30)], "size 0 leaves photos as they are"


class Guided(Recorder):
    """Looks densely along masks."""

    wants_regions = True

    def predict(  # type: ignore[override]
        self, images: Sequence[Tensor], text: TextBank, proposals: Sequence[Proposals]
    ) -> list[DenseScores]:
        self._note("predict", images, text, list(proposals))
        return [DenseScores(torch.zeros(4, 1, 1)) for _ in images]


def test_a_dense_head_that_wants_regions_gets_them() -> None:
    guided = Guided()
    assert isinstance(guided, RegionDenseHead)
    segmenter = Segmenter(guided, Strips(Strips.Config(2)), dense=guided, size=TestSize(10, 18))
    found = segmenter.gather(PHOTOS, WORDS)
    [(_, (sizes, text, masks))] = [call for call in guided.calls if call[0] == "predict"]
    assert [one.size_hw for one in masks] == sizes == [(10, 15), (18, 9)]
    assert text is WORDS.text
    assert all(one is evidence.proposals for one, evidence in zip(masks, found, strict=True))
    given = Proposals(torch.ones(3, 10, 15, dtype=torch.bool), torch.ones(3))
    segmenter.gather(PHOTOS[:1], WORDS, [given])
    assert guided.calls[-1][1][2] == [given]


@pytest.mark.parametrize("slot", ["dense", "pixels"])
def test_a_dense_head_that_wants_regions_needs_stage_one(slot: str) -> None:
    with pytest.raises(TwostageError, match=rf"{slot.upper()}.NAME: Guided .* set PROPOSALS.NAME"):
        Segmenter(Recorder(), **{slot: Guided()})  # type: ignore[arg-type]


def test_given_masks_take_the_place_of_stage_one() -> None:
    recorder = Recorder()
    given = Proposals(torch.ones(3, 20, 30, dtype=torch.bool), torch.ones(3))
    segmenter = Segmenter(recorder, recorder, recorder, size=TestSize(0))
    [evidence] = segmenter.gather(PHOTOS[:1], WORDS, [given])
    assert [role for role, _ in recorder.calls] == ["classify"]
    assert evidence.proposals is given
    assert evidence.stage_one is None
    assert evidence.regions is not None
    assert len(evidence.regions) == 3


def test_photos_and_given_masks_go_to_the_parts_device() -> None:
    recorder = Recorder()
    segmenter = Segmenter(recorder, recorder, recorder, size=TestSize(0), device=torch.device("meta"))
    given = Proposals(torch.ones(3, 20, 30), torch.ones(3))
    [evidence] = segmenter.gather(PHOTOS[:1], WORDS, [given])
    assert recorder.devices == {"meta"}
    [found] = segmenter.gather(PHOTOS[:1], WORDS)
    assert found.proposals is not None
    assert found.proposals.scores.device.type == "meta", "proposals read from files come along"
    assert evidence.proposals is not None
    assert evidence.proposals.masks.device.type == "meta"


def test_no_photos_no_results() -> None:
    assert Segmenter(Recorder(), Recorder(), Recorder(), Recorder()).segment([], WORDS) == []


@pytest.mark.parametrize("classifier", [None, Recorder()])
def test_something_has_to_look_at_the_photo(classifier: Recorder | None) -> None:
    with pytest.raises(
        TwostageError, match=r"set PROPOSALS\.NAME, DENSE\.NAME or PIXELS\.NAME \(see `twostage components`\)"
    ):
        Segmenter(Recorder(), classifier=classifier)


def test_an_ensemble_has_to_listen() -> None:
    deaf = GeometricEnsemble(GeometricEnsemble.Config())
    with pytest.raises(TwostageError, match=r"GeometricEnsemble weighs .*set ENSEMBLE\.NAME per_pixel"):
        Segmenter(deaf, dense=Recorder(), pixels=Recorder())
    with pytest.raises(TwostageError, match=r"PerPixelEnsemble weighs .*there is neither"):
        Segmenter(PerPixelEnsemble.tiny(), Recorder(), Recorder())
    Segmenter(PerPixelEnsemble.tiny(), dense=Recorder())


def test_the_trained_network_gets_the_words_of_stage_one() -> None:
    recorder, own = Recorder(), bank(4, dim=5)
    Segmenter(recorder, pixels=recorder).gather(PHOTOS[:1], Words(WORDS.vocabulary, WORDS.text, own))
    assert recorder.calls[0][1][1] is own


def test_a_real_merge_by_hand() -> None:
    """Three strips of plain colour: each gets the class whose direction is nearest to it."""
    photo = torch.zeros(3, 6, 9, dtype=torch.uint8)
    photo[0, :, :3], photo[1, :, 3:6], photo[2, :, 6:] = 255, 255, 255
    directions = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    parts = (Strips(Strips.Config()), Colours(Colours.Config()))
    ensemble = GeometricEnsemble(GeometricEnsemble.Config())
    [result] = Segmenter(ensemble, *parts, size=TestSize(0)).segment([photo], WORDS)
    expected = directions.argmax(dim=1).repeat_interleave(3).expand(6, 9)
    assert torch.equal(result.labels, expected.int())
