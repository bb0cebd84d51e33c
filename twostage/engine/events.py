"""What a run tells: progress lines, log.txt, metrics.json (one object a line), TensorBoard, config.yaml."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

import twostage
from twostage.config import Config, dump_config
from twostage.engine import distributed
from twostage.engine.checkpoint import write_atomically
from twostage.errors import TwostageError

log = logging.getLogger(__name__)


@contextmanager
def run_output(config: Config) -> Iterator[Path]:
    """Makes OUTPUT_DIR, writes the resolved config.yaml there, and logs to the console and to log.txt for
    the block.

    Of several processes the main one speaks; the others report warnings only.

    Raises:
        TwostageError: the folder cannot be written to.
    """
    folder = Path(config.output_dir)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if distributed.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(
                folder / "config.yaml", lambda stream: stream.write(dump_config(config).encode())
            )
            handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
        except OSError as error:
            raise TwostageError(f"OUTPUT_DIR: cannot write to {folder}: {error.strerror}.") from error
    logger = logging.getLogger("twostage")
    before = logger.level, logger.propagate
    logger.propagate = False  # open_clip gives the root logger a handler of its own, which would say it twice
    logger.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s %(levelname)s] %(message)s", "%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    log.info(
        "twostage %s, torch %s, Python %s", twostage.__version__, torch.__version__, platform.python_version()
    )
    try:
        yield folder
    finally:
        logger.setLevel(before[0])
        logger.propagate = before[1]
        for handler in handlers:
            logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()


class Events:
    """Collects what the steps report and writes their means every `period` updates. Silent outside the main
    process.
    """

    def __init__(self, folder: Path, max_iter: int, period: int, start: int) -> None:
        """start: the first update to come; earlier runs' lines in metrics.json stay, later ones count."""
        self._max_iter, self._period = max_iter, period
        self._sums: dict[str, float] = {}
        self._count = 0
        self._clock = time.perf_counter()
        self._board: Any = None
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = (folder / "metrics.json").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder), purge_step=start or None)

    def step(self, iteration: int, values: Mapping[str, float], rate: float, photos: int) -> None:
        """After update `iteration` (from 0): its terms; photos: how many it saw over all processes."""
        if self._board is None:
            return
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if (iteration + 1) % self._period and iteration + 1 != self._max_iter:
            return
        now = time.perf_counter()
        means = {name: total / self._count for name, total in self._sums.items()}
        seconds = (now - self._clock) / self._count
        self._sums, self._count, self._clock = {}, 0, now
        self._say(iteration, means, rate, seconds, photos)
        self.scalars(iteration, {**means, "lr": rate, "time": seconds, "photos_per_second": photos / seconds})

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """One line of metrics.json and one point of each TensorBoard curve; what is not finite is null in
        JSON, and without values there is no line.
        """
        if self._board is None or not values:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, iteration)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work in the block (saving, evaluating) does not count in the rate."""
        began = time.perf_counter()
        yield
        self._clock += time.perf_counter() - began

    def close(self) -> None:
        """Writes what is left."""
        if self._board is not None:
            self._board.close()
            self._metrics.close()
            self._board = None

    def _say(
        self, iteration: int, means: Mapping[str, float], rate: float, seconds: float, photos: int
    ) -> None:
        left = timedelta(seconds=int(seconds * (self._max_iter - iteration - 1)))
        terms = "  ".join(f"{name}: {value:.4g}" for name, value in means.items())
        memory = ""
        if torch.cuda.is_available():
            memory = f"  memory: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        log.info(
            "update %d/%d  left: %s  %s  lr: %.3g  %.3f s/update  %.1f photos/s%s",
            iteration + 1, self._max_iter, left, terms, rate, seconds, photos / seconds, memory,
        )  # fmt: skip
