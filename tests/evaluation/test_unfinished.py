"""The file of an unfinished evaluation: everything comes back bit by bit, or it is not taken up."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_parts import Colours, Strips, bank

from twostage.data.shapes.dataset import ShapesDataset
from twostage.engine import distributed
from twostage.ensembles.geometric import GeometricEnsemble
from twostage.evaluation.runner import evaluate
from twostage.evaluation.tally import Tally, Unfinished
from twostage.segmenter import Segmenter, Words
from twostage.views import TestSize


def counted(seed: int, names: tuple[str, ...] = ("a", "b"), classes: int = 5) -> Tally:
    rng = np.random.default_rng(seed)
    tally = Tally.of(names, classes)
    for matrix in tally.confusions.values():
        matrix.counts += rng.integers(0, 1 << 40, matrix.counts.shape)
    tally.recall.sums += rng.random(tally.recall.sums.shape)
    tally.done, tally.failed, tally.seconds = 7, ["x.jpg: broken", "Ü"], 1.5
    return tally


def same(one: Tally, other: Tally) -> bool:
    matrices = zip(one.confusions.items(), other.confusions.items(), strict=True)
    return (
        all(a[0] == b[0] and np.array_equal(a[1].counts, b[1].counts) for a, b in matrices)
        and np.array_equal(one.recall.sums, other.recall.sums)
        and (one.done, one.failed) == (other.done, other.failed)
    )


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path, tally = tmp_path / "deep" / "unfinished.npz", counted(0)
    Unfinished(path, {"a": 1}).keep(tally, seconds=2.0, now=True)
    kept = Unfinished(path, {"a": 1})
    found = kept.taken_up(Tally.of(("a", "b"), 5))
    assert same(found, tally)
    assert found.seconds == 3.5
    assert kept.before == 7
    fresh = Tally.of(("a",), 5)
    assert Unfinished(tmp_path / "none.npz", {}).taken_up(fresh) is fresh


def test_time_between_two_savings(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    Unfinished(path, {}, seconds=1000).keep(counted(0), 0)
    assert not path.exists()
    Unfinished(path, {}, seconds=0).keep(counted(0), 0)
    assert path.exists()


@pytest.mark.parametrize(
    ("facts", "fresh", "message"),
    [
        ({"options": 2, "classes": 1}, Tally.of(("a", "b"), 5), "other options; this one begins anew"),
        ({"options": 1, "classes": 1}, Tally.of(("a", "b", "c"), 5), "is damaged"),
        ({"options": 1, "classes": 1}, Tally.of(("a", "b"), 6), "is damaged"),
    ],
)
def test_counts_of_something_else_are_not_taken_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, facts: dict[str, int], fresh: Tally, message: str
) -> None:
    path = tmp_path / "x.npz"
    Unfinished(path, {"options": 1, "classes": 1}).keep(counted(0), 0, now=True)
    kept = Unfinished(path, facts)
    assert kept.taken_up(fresh) is fresh
    assert not any(matrix.counts.any() for matrix in fresh.confusions.values())
    assert kept.before == 0
    assert message in caplog.text


@pytest.mark.parametrize("content", [b"", b"half", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_said_and_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    path, fresh = tmp_path / "x.npz", Tally.of(("a",), 5)
    path.write_bytes(content)
    assert Unfinished(path, {}).taken_up(fresh) is fresh
    assert "is damaged" in caplog.text
    Unfinished(path, {}).keep(counted(0), 0, now=True)
    path.write_bytes(path.read_bytes()[:-30])
    assert Unfinished(path, {}).taken_up(fresh) is fresh


def test_merging_adds_everything(tmp_path: Path) -> None:
    one, other = counted(0), counted(1)
    total = one.empty()
    total.merge(one)
    total.merge(other)
    for name, matrix in total.confusions.items():
        assert np.array_equal(matrix.counts, one.confusions[name].counts + other.confusions[name].counts)
    assert np.array_equal(total.recall.sums, one.recall.sums + other.recall.sums)
    assert (total.done, len(total.failed), total.seconds) == (14, 4, 1.5)


class Killed(BaseException):
    """What no handler sees coming."""


PLAIN = GeometricEnsemble(GeometricEnsemble.Config(use=("regions",)))
TINY = Segmenter(PLAIN, Strips(Strips.Config()), Colours(Colours.Config()), size=TestSize(0))


def numbers(folder: str, name: str, number: int = 0) -> dict[str, Any]:
    """What two processes count; the one of each that looks at `number` photos is killed then."""
    dataset = ShapesDataset("val", length=6)
    path = Path(folder, f"{name}_{distributed.rank()}_of_{distributed.world_size()}.npz")
    words, seen = Words(dataset.vocabulary, bank(20)), []

    class Mortal(GeometricEnsemble):
        def merge(self, evidence: Any, vocabulary: Any) -> Any:
            seen.append(1)
            if len(seen) == number:
                raise Killed
            return super().merge(evidence, vocabulary)

    outcome = evaluate(
        TINY, dataset, words, {"mine": Mortal(PLAIN.config)}, unfinished=Unfinished(path, {}, seconds=0)
    )
    recall = {group: dataclasses.asdict(one) for group, one in outcome.recall.items()}
    rows = outcome.metrics["mine"].as_dict()
    return {"rows": rows, "recall": recall, "images": outcome.images, "seen": len(seen)}


def share(folder: str) -> int:
    """One of two processes that die at different photos."""
    torch.set_num_threads(1)
    whole = numbers(folder, "whole")
    try:
        numbers(folder, "cut", number=2 + distributed.rank())
    except Killed:
        distributed.barrier()
    Path(folder, f"{distributed.rank()}.json").write_text(json.dumps([whole, numbers(folder, "cut")]))
    return 0


def test_every_process_goes_on_with_its_own_counts(tmp_path: Path) -> None:
    url = f"tcp://127.0.0.1:{distributed._free_port()}"
    assert distributed._spawn(2, (share, 2, 2, 0, url, (str(tmp_path),))) == 0
    for rank in range(2):
        whole, again = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (whole.pop("seen"), again.pop("seen")) == (3, 2 - rank)
        assert again == whole
