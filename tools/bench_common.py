"""What the benchmarks share: clocks, turns, and the machine the numbers come from."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from twostage.clip.precision import has_amx

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Timings:
    """Seconds of each round, wall clock and processor time of this process, by what was run."""

    wall: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add one round of `name`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu[name].append(time.process_time() - cpu)
        self.wall[name].append(time.perf_counter() - wall)

    def ratio(self, name: str, base: str, clock: str) -> float:
        """Median over the rounds of how much longer `name` took than `base` did in the same round."""
        values: dict[str, list[float]] = getattr(self, clock)
        return statistics.median(a / b for a, b in zip(values[name], values[base], strict=True))


def interleave(runs: dict[str, Callable[[], object]], rounds: int) -> Timings:
    """Run everything in turns, so that a change of the machine's load meets all alike; the first turn is not
    counted.
    """
    timings = Timings()
    for turn in range(rounds + 1):
        order = list(runs) if turn % 2 else list(runs)[::-1]
        for name in order:
            if turn == 0:
                runs[name]()
                continue
            with timings.measure(name):
                runs[name]()
    return timings


@dataclass(frozen=True)
class Machine:
    """Where the numbers come from. load: the one-minute average at the start; above 0 others were at work."""

    processor: str
    cores: int
    torch_threads: int
    torch: str
    python: str
    amx: bool
    load: float

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
        named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        return cls(
            next(named, platform.processor() or platform.machine()),
            os.cpu_count() or 1,
            torch.get_num_threads(),
            torch.__version__,
            platform.python_version(),
            has_amx(),
            os.getloadavg()[0],
        )
