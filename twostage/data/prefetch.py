"""Photos in order, decoded ahead in threads while the caller works on the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from twostage.data.sample import Sample, SegmentationDataset

Item = TypeVar("Item")
Value = TypeVar("Value")


def prefetch(
    dataset: SegmentationDataset, indices: Iterable[int], ahead: int = 4, threads: int = 2
) -> Iterator[Sample]:
    """dataset[i] for each index, in order, with at most `ahead` samples waiting.

    An error of a sample is raised at its turn. ahead 0 reads in the caller's own thread.
    """
    # map, unlike a loop's variable, keeps no sample that the caller is through with
    yield from map(_value, read_ahead(dataset.__getitem__, indices, ahead, threads))


def read_ahead(
    read: Callable[[Item], Value], items: Iterable[Item], ahead: int = 4, threads: int = 2
) -> Generator[tuple[Item, Future[Value]], None, None]:
    """Each item with what became of read(item), in order; at most `ahead` values wait.

    `result()` of the future gives the value or raises the item's own error, after which the next items come
    all the same. `items` may be endless; they are taken as they are needed. With one thread they are read one
    after the other, in order. ahead 0 reads in the caller's own thread.
    """
    if ahead <= 0:
        for item in items:
            yield item, _read_here(read, item)
        return
    pool = ThreadPoolExecutor(max_workers=min(threads, ahead), thread_name_prefix="read")
    waiting: deque[tuple[Item, Future[Value]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > ahead:
                yield _finished(waiting)
        while waiting:
            yield _finished(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _value(read: tuple[Item, Future[Value]]) -> Value:
    return read[1].result()


def _finished(waiting: deque[tuple[Item, Future[Value]]]) -> tuple[Item, Future[Value]]:
    item, reading = waiting.popleft()
    reading.exception()  # waits
    return item, reading


def _read_here(read: Callable[[Item], Value], item: Item) -> Future[Value]:
    reading: Future[Value] = Future()
    try:
        reading.set_result(read(item))
    except Exception as error:
        reading.set_exception(error)
    return reading
