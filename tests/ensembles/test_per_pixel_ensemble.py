"""A per-pixel network and CLIP in every pixel: the paper's exponents, one pixel at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from twostage.ensembles.geometric import GeometricEnsemble
from twostage.ensembles.per_pixel import PerPixelEnsemble
from twostage.errors import TwostageError
from twostage.types import DenseScores, Evidence, PixelScores
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary((("a",), ("b",), ("c",)), (True, False, True))
SIZE = (6, 8)


def logits(seed: int, grid: tuple[int, int] = SIZE) -> Tensor:
    return 3 * torch.randn(3, *grid, generator=torch.Generator().manual_seed(seed))


def both() -> Evidence:
    """Both maps as fine as the label map, so that nothing is resized."""
    return Evidence(SIZE, dense=DenseScores(logits(1)), pixels=PixelScores(logits(0), 1, SIZE))


def make(**options: Any) -> PerPixelEnsemble:
    return PerPixelEnsemble(PerPixelEnsemble.Config(**{"scores": True, **options}))


def scores_of(ensemble: PerPixelEnsemble, words: Vocabulary = WORDS) -> Tensor:
    found = ensemble.merge(both(), words)
    assert found.scores is not None
    assert torch.equal(found.labels, found.scores.argmax(0).int())
    return found.scores


@pytest.mark.parametrize("flags", [(True, False, True), None])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_exponents_swap_by_flag(weight: float, flags: tuple[bool, ...] | None) -> None:
    """Seen: p^w q^(1-w); others, and all where no flags are known: p^(1-w) q^w. Not renormalised."""
    found = scores_of(make(weight=weight), Vocabulary(WORDS.names, flags))
    p, q = logits(0).softmax(0), logits(1).softmax(0)
    for k in range(3):
        seen = flags is not None and flags[k]
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                own, clip = float(p[k, y, x]), float(q[k, y, x])
                wanted = own**weight * clip ** (1 - weight) if seen else own ** (1 - weight) * clip**weight
                assert float(found[k, y, x]) == pytest.approx(wanted, rel=1e-4)


def test_the_papers_weight_is_the_default() -> None:
    assert PerPixelEnsemble.Config().weight == 0.7


def test_below_zero_clip_is_alone() -> None:
    torch.testing.assert_close(scores_of(make(weight=-1.0)), logits(1).softmax(0))
    assert make(weight=-1.0).merge(both(), WORDS).info["parts"] == ("dense",)


def test_exponents_apart() -> None:
    found = scores_of(make(weight=0.6, seen_weight=0.1))
    p, q = logits(0).softmax(0), logits(1).softmax(0)
    torch.testing.assert_close(found[0], p[0] ** 0.9 * q[0] ** 0.1)
    torch.testing.assert_close(found[1], p[1] ** 0.4 * q[1] ** 0.6)


def test_temperatures() -> None:
    found = scores_of(make(weight=0.5, pixel_temperature=2.0, dense_temperature=8.0))
    p, q = (logits(0) / 2).softmax(0), (logits(1) / 8).softmax(0)
    torch.testing.assert_close(found, (p * q).sqrt())


@pytest.mark.parametrize(("part", "seed"), [("pixels", 0), ("dense", 1)])
def test_one_part_alone(part: str, seed: int) -> None:
    torch.testing.assert_close(scores_of(make(use=(part,))), logits(seed).softmax(0))
    alone = Evidence(SIZE, **{part: DenseScores(logits(seed))})
    torch.testing.assert_close(make().merge(alone, WORDS).scores, logits(seed).softmax(0))


def test_one_opinion_of_the_whole_image_shifts_every_pixel() -> None:
    """The released code's CLIP map: the same probabilities in every pixel."""
    image = torch.tensor([2.0, 0.0, -1.0])[:, None, None]
    given = Evidence(SIZE, dense=DenseScores(image), pixels=DenseScores(logits(0)))
    found = make(weight=0.5).merge(given, WORDS).scores
    assert found is not None
    expected = (logits(0).softmax(0) * image.softmax(0)).sqrt()
    torch.testing.assert_close(found, expected)


def test_maps_of_other_sizes_meet_at_the_label_map() -> None:
    given = Evidence(
        (13, 21), dense=DenseScores(logits(1, (2, 3))), pixels=PixelScores(logits(0, (4, 6)), 4, (14, 22))
    )
    found = make(confidence=True).merge(given, WORDS)
    assert found.labels.shape == (13, 21)
    assert found.labels.dtype == torch.int32
    assert found.confidence is not None
    assert found.scores is not None
    share = found.scores.amax(0) / found.scores.sum(0)
    torch.testing.assert_close(found.confidence, share)
    plain = make(scores=False).merge(given, WORDS)
    assert torch.equal(plain.labels, found.labels)
    assert plain.scores is None
    assert plain.confidence is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use": ("pixel",)}, "unknown part 'pixel'.*'pixels'"),
        ({"weight": 1.2}, "weight must be at most 1, got 1.2"),
        ({"seen_weight": -0.1}, r"seen_weight must lie in \[0, 1\]"),
        ({"dense_temperature": 0.0}, "dense_temperature must be above 0"),
        ({"pixel_temperature": -1.0}, "pixel_temperature must be above 0"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(TwostageError, match=told):
        make(**options)


def test_what_is_missing_or_does_not_fit() -> None:
    with pytest.raises(TwostageError, match="the evidence has \\['pixels'\\]"):
        make(use=("pixels", "dense")).merge(Evidence(SIZE, pixels=DenseScores(logits(0))), WORDS)
    with pytest.raises(TwostageError, match="the pixels map should have 2 classes as the vocabulary, got 3"):
        make().merge(both(), Vocabulary.from_words("a, b"))


def test_the_geometric_ensemble_is_deaf_to_it() -> None:
    """It says so beforehand: see the segmenter."""
    assert "pixels" not in GeometricEnsemble.weighs
    assert set(PerPixelEnsemble.weighs) == {"pixels", "dense"}
