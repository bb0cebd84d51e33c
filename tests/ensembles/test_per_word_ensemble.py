"""Every word in one softmax: a slow loop over pixels, thresholds by hand, strips, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twostage.ensembles.per_word import PerWordEnsemble
from twostage.errors import TwostageError
from twostage.ops import fusion
from twostage.ops.fusion import class_maps
from twostage.types import DenseScores, Evidence, ShapeError, WordScores
from twostage.vocabulary import Vocabulary

CLASS_OF = [0, 0, 0, 1, 2, 2, 3]
WORDS = Vocabulary((("sky", "wall", "sea"), ("cat",), ("sofa", "couch"), ("dog",)), background=0)


def words(rows: Tensor, class_of: list[int] | None = None) -> WordScores:
    index = torch.tensor(CLASS_OF if class_of is None else class_of)
    return WordScores(class_maps(rows[None], index, int(index.max()) + 1)[0], rows, index)


def make(**options: Any) -> PerWordEnsemble:
    return PerWordEnsemble(PerWordEnsemble.Config(**options))


def slowly(
    rows: Tensor, class_of: list[int], size: tuple[int, int], probability: float, area: float
) -> tuple[list[list[int]], list[list[list[float]]]]:
    """Labels and class probabilities (K, H, W), one pixel and one word at a time."""
    full = F.interpolate(rows[None], size, mode="bilinear", align_corners=False)[0].double().tolist()
    count = max(class_of) + 1
    probs = [[[0.0] * size[1] for _ in range(size[0])] for _ in range(count)]
    for y in range(size[0]):
        for x in range(size[1]):
            every = [math.exp(row[y][x]) for row in full]
            total = sum(every)
            for value, k in zip(every, class_of, strict=True):
                probs[k][y][x] = max(probs[k][y][x], value / total)

    def best(y: int, x: int, allowed: set[int]) -> int:
        return max(sorted(allowed), key=lambda k: probs[k][y][x])

    pixels = [(y, x) for y in range(size[0]) for x in range(size[1])]
    allowed = set(range(count))
    if area:
        first = [best(y, x, allowed) for y, x in pixels]
        foreground = sum(k != 0 for k in first)
        allowed = {0} | {k for k in allowed if first.count(k) >= area * foreground}
    labels = [[0] * size[1] for _ in range(size[0])]
    for y, x in pixels:
        k = best(y, x, allowed)
        labels[y][x] = k if probs[k][y][x] >= probability else 0
    return labels, probs


@pytest.mark.parametrize("size", [(9, 11), (4, 5), (17, 8)])
@pytest.mark.parametrize(
    ("probability", "area"), [(0.0, 0.0), (0.35, 0.0), (0.0, 0.2), (0.35, 0.3), (1.0, 0.0)]
)
def test_a_slow_loop_says_the_same(size: tuple[int, int], probability: float, area: float) -> None:
    rows = 2 * torch.randn(7, 6, 7, generator=torch.Generator().manual_seed(len(CLASS_OF)))
    labels, probs = slowly(rows, CLASS_OF, size, probability, area)
    evidence = Evidence(size, dense=words(rows))
    found = make(probability=probability, area=area).merge(evidence, WORDS)
    assert found.labels.tolist() == labels
    assert found.labels.dtype == torch.int32
    plain = make(scores=True).merge(evidence, WORDS)
    assert plain.scores is not None
    torch.testing.assert_close(plain.scores, torch.tensor(probs), rtol=1e-4, atol=1e-6)


def test_a_class_has_its_best_word_and_not_the_sum() -> None:
    """Three words of class 0 at .2 each lose against one word at .3: the sum would have won."""
    probs = torch.tensor([0.2, 0.2, 0.2, 0.3, 0.04, 0.03, 0.03])
    found = make(scores=True).merge(Evidence((1, 1), dense=words(probs.log()[:, None, None])), WORDS)
    assert found.labels.tolist() == [[1]]
    assert found.scores is not None
    torch.testing.assert_close(found.scores.flatten(), torch.tensor([0.2, 0.3, 0.04, 0.03]))


def test_unsure_pixels_are_background() -> None:
    """Best class .5, .29 and .3 of two: the threshold .3 lets .3 pass."""
    probs = torch.tensor([[0.2, 0.27, 0.28], [0.5, 0.29, 0.3000001], [0.3, 0.44, 0.4199999]])
    rows = torch.stack([probs[0], probs[1], probs[2] / 2, probs[2] / 2]).log()[:, None]
    vocabulary = Vocabulary((("background",), ("cat",), ("sofa", "couch")))
    evidence = Evidence((1, 3), dense=words(rows, [0, 1, 2, 2]))
    assert make().merge(evidence, vocabulary).labels.tolist() == [[1, 1, 1]]
    found = make(probability=0.3, scores=True, confidence=True).merge(evidence, vocabulary)
    assert found.labels.tolist() == [[1, 0, 1]]
    assert found.scores is not None
    assert found.scores[:, 0, 1].tolist() == pytest.approx([0.27, 0, 0]), "only the background is left"
    assert torch.equal(found.scores.argmax(0).int(), found.labels)
    assert found.confidence is not None
    assert found.confidence.tolist() == [pytest.approx([0.5 / 0.85, 1.0, 0.3 / 0.79], abs=1e-4)]


def areas(pixels: dict[int, int], second: int, total: int = 20) -> Evidence:
    """One row of pixels: class k wins so many, `second` is next everywhere, the others are far behind."""
    probs = torch.full((4, total), 0.01)
    winners = [k for k, count in pixels.items() for _ in range(count)]
    for x, k in enumerate(winners):
        probs[second, x] = 0.3
        probs[k, x] = 0.6
    rows = torch.stack([probs[k] for k in CLASS_OF]).log()[:, None]
    return Evidence((1, total), dense=words(rows))


def test_small_classes_go_to_the_next_best() -> None:
    """10 background, 7 cats, 2 sofas and 1 dog of 10 foreground pixels; cats are next everywhere."""
    evidence = areas({0: 10, 1: 7, 2: 2, 3: 1}, second=1)
    by_area = {
        area: make(area=area).merge(evidence, WORDS).labels[0].tolist() for area in (0.0, 0.1, 0.2, 0.3)
    }
    assert by_area[0.0] == [0] * 10 + [1] * 7 + [2] * 2 + [3]
    assert by_area[0.1] == by_area[0.0], "a share of just the threshold stays"
    assert by_area[0.2] == [0] * 10 + [1] * 7 + [2] * 2 + [1]
    assert by_area[0.3] == [0] * 10 + [1] * 7 + [1] * 3
    info = make(area=0.3).merge(evidence, WORDS).info
    assert (info["parts"], info["taken_out"]) == (("dense",), 2)


def test_the_background_counts_in_no_area_and_is_never_taken_out() -> None:
    """One background pixel, 19 cats: the background is small, and stays."""
    assert make(area=0.9).merge(areas({0: 1, 1: 19}, second=2), WORDS).labels[0].tolist() == [0] + [1] * 19
    only = make(area=0.9).merge(areas({0: 20}, second=2), WORDS)
    assert only.labels[0].tolist() == [0] * 20, "no foreground, nothing to compare with"


def test_a_background_can_stand_anywhere() -> None:
    vocabulary = Vocabulary((("cat",), ("background", "other")))
    rows = torch.tensor([[0.6, 0.4], [0.3, 0.35], [0.1, 0.25]]).log()[:, None]
    evidence = Evidence((1, 2), dense=words(rows, [0, 1, 1]))
    assert make(probability=0.5).merge(evidence, vocabulary).labels.tolist() == [[0, 1]]


def test_strips_give_the_labels_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 3 * torch.randn(7, 12, 10, generator=torch.Generator().manual_seed(1))
    evidence = Evidence((37, 29), dense=words(rows))
    ensemble = make(probability=0.3, area=0.15, scores=True, confidence=True)
    whole = ensemble.merge(evidence, WORDS)
    monkeypatch.setattr(fusion.strips, "__defaults__", (4 * 7 * 29 * 2,))
    assert len(list(fusion.strips(7, (37, 29)))) == 19
    parts = ensemble.merge(evidence, WORDS)
    assert torch.equal(whole.labels, parts.labels)
    assert whole.scores is not None
    assert parts.scores is not None
    torch.testing.assert_close(parts.scores, whole.scores)
    torch.testing.assert_close(parts.confidence, whole.confidence)


def test_classes_without_synonyms_need_no_words() -> None:
    rows = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1))
    vocabulary = Vocabulary.from_words("a, b, c")
    plain = make().merge(Evidence((8, 8), dense=DenseScores(rows)), vocabulary)
    known = make().merge(Evidence((8, 8), dense=words(rows, [0, 1, 2])), vocabulary)
    assert torch.equal(plain.labels, known.labels)


def test_what_is_refused() -> None:
    rows = torch.zeros(7, 2, 2)
    evidence = Evidence((2, 2), dense=words(rows))
    nothing = Vocabulary(WORDS.names)
    for option in ("probability", "area"):
        with pytest.raises(TwostageError, match=rf"{option} must lie in \[0, 1\], got 1.5"):
            make(**{option: 1.5})
        with pytest.raises(TwostageError, match="none of the 4 classes is called 'background': add one"):
            make(**{option: 0.1}).merge(evidence, nothing)
    assert make().merge(evidence, nothing).labels.shape == (2, 2)
    with pytest.raises(
        TwostageError, match=r"4 classes have 7 names, .*\(DenseScores\) .* DENSE.NAME readout"
    ):
        make().merge(Evidence((2, 2), dense=DenseScores(torch.zeros(4, 2, 2))), WORDS)
    with pytest.raises(TwostageError, match="should have 3 classes as the vocabulary, got 4"):
        make().merge(evidence, Vocabulary.from_words("a, b, c"))
    with pytest.raises(TwostageError, match=r"the evidence has no dense map: set DENSE\.NAME"):
        make().merge(Evidence((2, 2)), WORDS)


def test_words_fit_their_classes() -> None:
    with pytest.raises(ShapeError, match=r"WordScores\.rows: expected \(T, 2, 2\), got \(3, 2, 3\)"):
        WordScores(torch.zeros(2, 2, 2), torch.zeros(3, 2, 3), torch.tensor([0, 1, 1]))
    with pytest.raises(ShapeError, match=r"WordScores\.class_of: expected \(3,\), got \(2,\)"):
        WordScores(torch.zeros(2, 2, 2), torch.zeros(3, 2, 2), torch.tensor([0, 1]))


@pytest.mark.parametrize("positions", [[0, 2], [2, 0], [3, 1, 2]])
def test_some_classes_keep_their_words(positions: list[int]) -> None:
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(1))
    few = words(rows).of_classes(torch.tensor(positions))
    own = [(row, positions.index(k)) for row, k in enumerate(CLASS_OF) if k in positions]
    assert few.class_of.tolist() == [k for _, k in own]
    assert torch.equal(few.rows, rows[[row for row, _ in own]])
    torch.testing.assert_close(few.logits, class_maps(few.rows[None], few.class_of, len(positions))[0])
    alone = WordScores(rows, rows, torch.arange(7)).of_classes(torch.tensor(positions))
    assert alone.rows is alone.logits
    assert torch.equal(alone.rows, rows[positions])
    assert alone.class_of.tolist() == list(range(len(positions)))
