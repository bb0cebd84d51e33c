"""Reading ahead keeps the order, the limit, and the errors at their turn."""

from __future__ import annotations

import threading

import pytest
import torch

from twostage.data.errors import ImageReadError
from twostage.data.prefetch import prefetch
from twostage.data.sample import Sample
from twostage.vocabulary import Vocabulary


class Watched:
    """Remembers what was read."""

    name = "watched"
    vocabulary = Vocabulary((("a",),))

    def __init__(self, broken: int = -1) -> None:
        self.read: list[int] = []
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        if index == self.broken:
            raise ImageReadError(f"{index}: broken")
        return Sample(torch.zeros((3, 1, 1), dtype=torch.uint8), None, str(index))


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_order_is_kept(ahead: int) -> None:
    order = [4, 1, 1, 9, 0]
    assert [s.image_id for s in prefetch(Watched(), order, ahead, threads=3)] == ["4", "1", "1", "9", "0"]


def test_no_more_than_asked_waits_and_leaving_early_ends_the_threads() -> None:
    dataset = Watched()
    samples = prefetch(dataset, range(10), ahead=2)
    next(samples)
    samples.close()  # type: ignore[attr-defined]
    assert len(dataset.read) <= 3
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


def test_an_error_comes_at_its_turn() -> None:
    samples = prefetch(Watched(broken=2), range(5))
    assert [next(samples).image_id, next(samples).image_id] == ["0", "1"]
    with pytest.raises(ImageReadError, match="2: broken"):
        next(samples)
