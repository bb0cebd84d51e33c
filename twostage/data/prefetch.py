"""Samples in order for evaluation, decoded ahead in threads while the caller works on the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from twostage.data.sample import Sample, SegmentationDataset


def prefetch(
    dataset: SegmentationDataset, indices: Iterable[int], ahead: int = 4, threads: int = 2
) -> Iterator[Sample]:
    """dataset[i] for each index, in order, with at most `ahead` samples waiting.

    An error of a sample is raised at its turn. ahead 0 reads in the caller's own thread.
    """
    if ahead <= 0:
        yield from (dataset[index] for index in indices)
        return
    pool = ThreadPoolExecutor(max_workers=min(threads, ahead), thread_name_prefix="read")
    waiting: deque[Future[Sample]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(dataset.__getitem__, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
