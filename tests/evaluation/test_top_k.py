"""Top-1 and top-5 against a slow count, by class, by set, and in the cases that have no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from twostage.data.errors import LabelError
from twostage.evaluation.top_k import rank_of_truth, top_k
from twostage.vocabulary import Vocabulary

WORDS = Vocabulary(tuple((name,) for name in "abcdefgh"), seen=(True,) * 5 + (False,) * 3)


def test_against_a_slow_count() -> None:
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=(60, 8)), rng.integers(0, 7, 60)
    classes[:3] = 6
    found = top_k(torch.from_numpy(logits), torch.from_numpy(classes), WORDS, {"first two": (0, 1)})
    order = np.argsort(-logits, axis=1, kind="stable")

    def slow(chosen: list[int], depth: int) -> tuple[float, float]:
        hits = {k: [classes[i] in order[i, :depth] for i in range(60) if classes[i] == k] for k in chosen}
        hits = {k: values for k, values in hits.items() if values}
        every = [value for values in hits.values() for value in values]
        return 100 * float(np.mean(every)), 100 * float(np.mean([np.mean(v) for v in hits.values()]))

    for one, chosen in (
        (found.overall, list(range(8))),
        (found.seen, [0, 1, 2, 3, 4]),
        (found.unseen, [5, 6, 7]),
        (found.subsets["first two"], [0, 1]),
    ):
        assert one is not None
        assert (one.top1, one.mean_top1) == pytest.approx(slow(chosen, 1))
        assert (one.top5, one.mean_top5) == pytest.approx(slow(chosen, 5))
        assert one.regions == sum(int(k in chosen) for k in classes)
    assert [one.name for one in found.classes] == list("abcdefgh")
    assert found.classes[7].regions == 0
    assert found.classes[7].top1 is None
    assert found.classes[2].top1 == pytest.approx(slow([2], 1)[0])
    assert found.seen is not None
    assert found.unseen is not None
    assert found.seen.mean_top1 is not None
    assert found.unseen.mean_top1 is not None
    expected = 2 / (1 / found.seen.mean_top1 + 1 / found.unseen.mean_top1)
    assert found.harmonic == pytest.approx(expected)
    assert found.as_dict()["classes"][0]["name"] == "a"


def test_ties_are_settled_by_order() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert rank_of_truth(logits, torch.tensor([0, 1])).tolist() == [0, 1]


def test_nothing_to_judge() -> None:
    none = top_k(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), Vocabulary.from_words("a, b"))
    assert none.overall.regions == 0
    assert none.overall.top1 is None
    assert none.seen is None
    assert none.harmonic is None
    only_seen = top_k(torch.eye(8)[:5], torch.arange(5), WORDS)
    assert only_seen.unseen is not None
    assert only_seen.unseen.mean_top1 is None
    assert only_seen.harmonic is None


def test_what_is_refused() -> None:
    words = Vocabulary.from_words("a, b")
    with pytest.raises(LabelError, match="not finite"):
        top_k(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]), words)
    with pytest.raises(LabelError, match=r"classes in 0..1"):
        top_k(torch.zeros(1, 2), torch.tensor([2]), words)
    with pytest.raises(LabelError, match=r"expected \(N, 2\)"):
        top_k(torch.zeros(1, 3), torch.tensor([0]), words)
