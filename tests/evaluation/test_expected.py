"""Expected figures: how they are written, met and missed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twostage.config import ConfigError
from twostage.evaluation import expected
from twostage.evaluation.binary import PairMetrics
from twostage.evaluation.confusion import ConfusionMatrix
from twostage.evaluation.expected import UnexpectedResultError, format_verdicts, judge, parse, require_met
from twostage.evaluation.metrics import Metrics, compute
from twostage.vocabulary import Vocabulary

ROW = ["pets", "ensemble", "hIoU", 66.7, 0.1]


def half_right() -> Metrics:
    """Seen 1.0, unseen 0.5: hIoU 66.67."""
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 0, 1, 1, 1]]))
    return compute(matrix, Vocabulary((("cat",), ("dog",), ("cow",)), (True, False, False)))


def test_a_figure_is_met_within_its_tolerance() -> None:
    metrics = half_right()
    seen, unseen = 100.0, 100 * (2 / 3 + 0) / 2
    both = 2 / (1 / seen + 1 / unseen)
    rows = [["pets", "ensemble", "hIoU", round(both, 1), 0.1], ["pets", "ensemble", "seen", 99.0, 0.5]]
    verdicts = judge(parse(rows, ["pets"], ["ensemble"]), {"pets": {"ensemble": metrics}})
    assert [verdict.met for verdict in verdicts] == [True, False]
    assert verdicts[0].measured == pytest.approx(both)
    assert format_verdicts(verdicts).splitlines()[1].endswith("expected 99.0 +- 0.5, got 100.0: NOT MET")
    assert verdicts[1].as_dict()["met"] is False
    with pytest.raises(UnexpectedResultError, match="1 of 2 expected figures were not met"):
        require_met(verdicts)
    require_met(verdicts[:1])


def test_a_figure_that_was_not_measured_is_not_met() -> None:
    verdicts = judge(parse([ROW]), {"pets": {}})
    assert (verdicts[0].met, verdicts[0].measured) == (False, None)
    assert "no number" in format_verdicts(verdicts)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (ROW[:4], "expected \\[data set"),
        ("pets", "expected \\[data set"),
        ([1, *ROW[1:]], "have to be words"),
        (["pet", *ROW[1:]], "data set 'pet' is not evaluated. Did you mean 'pets'"),
        (["pets", "ensembel", *ROW[2:]], "Did you mean 'ensemble'"),
        ([*ROW[:2], "hiou", *ROW[3:]], "Did you mean 'hIoU'"),
        ([*ROW[:3], "much", 1], "have to be numbers"),
        ([*ROW[:3], True, 1], "have to be numbers"),
        ([*ROW[:3], float("nan"), 1], "have to be numbers"),
        ([*ROW[:3], 101, 1], "0 to 100"),
        ([*ROW[:3], 50, -1], "tolerance of 0 or more"),
    ],
)
def test_rows_that_cannot_be_meant(row: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=f"TEST.EXPECTED_RESULTS, row 1: .*{said}"):
        parse([ROW, row], ["pets"], ["ensemble"])


def test_every_metric_is_a_column_of_the_results() -> None:
    assert set(expected.METRICS) <= set(half_right().as_dict())


def test_every_metric_of_pairs_is_a_column_of_theirs() -> None:
    assert set(expected.PAIR_METRICS) <= set(PairMetrics(1.0, 2.0, 3.0, 4.0, ()).as_dict())
    [row] = parse([["pets", "clsclip", "FB-IoU", 50.0, 1.0]], metrics=expected.PAIR_METRICS)
    assert judge([row], {"pets": {"clsclip": PairMetrics(1.0, 2.0, 50.5, 4.0, ())}})[0].met
    with pytest.raises(ConfigError, match="metric 'FB-IoU' is not evaluated"):
        parse([["pets", "clsclip", "FB-IoU", 50.0, 1.0]])
