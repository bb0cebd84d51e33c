"""Reading ahead keeps the order, the limit, and the errors at their turn."""

from __future__ import annotations

import itertools
import threading
import weakref

import pytest
import torch

from twostage.data.errors import ImageReadError
from twostage.data.prefetch import prefetch, read_ahead
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


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_after_an_error_the_next_items_come(ahead: int) -> None:
    def half(number: int) -> int:
        if number % 2:
            raise ImageReadError(f"{number} is odd")
        return number // 2

    found = [
        (item, reading.exception() or reading.result()) for item, reading in read_ahead(half, range(5), ahead)
    ]
    assert [item for item, _ in found] == [0, 1, 2, 3, 4]
    assert [value if isinstance(value, int) else str(value) for _, value in found] == [
        0,
        "1 is odd",
        1,
        "3 is odd",
        2,
    ]


def test_endless_items_are_taken_as_needed_and_one_thread_keeps_their_order() -> None:
    order: list[int] = []
    readings = read_ahead(
        lambda number: order.append(number) or number, itertools.count(), ahead=3, threads=1
    )
    got = [reading.result() for _, reading in itertools.islice(readings, 50)]
    readings.close()
    assert got == list(range(50))
    assert order == list(range(len(order)))
    assert len(order) <= 50 + 3


@pytest.mark.parametrize("ahead", [1, 4])
def test_samples_that_the_caller_is_through_with_are_gone(ahead: int) -> None:
    alive: set[int] = set()
    most = 0

    class Counted(Watched):
        def __getitem__(self, index: int) -> Sample:
            nonlocal most
            sample = super().__getitem__(index)
            alive.add(index)
            weakref.finalize(sample, alive.discard, index)
            most = max(most, len(alive))
            return sample

        def __len__(self) -> int:
            return 300

    dataset = Counted()
    for sample in prefetch(dataset, range(300), ahead):
        assert sample.image_id
        del sample
    assert len(dataset.read) == 300
    assert most <= ahead + 2
