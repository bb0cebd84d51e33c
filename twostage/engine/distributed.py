"""Several processes as one run: started here or by torchrun, asked for their rank, gathered."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from twostage.errors import TwostageError

PATIENCE = timedelta(hours=3)
"""How long a process waits for the slowest: shares of photos to label or to measure end far apart, and NCCL's
own ten minutes would end the run. Of a process that failed the others hear at once, from who started them.
"""


class LaunchError(TwostageError):
    """The processes that were asked for cannot be started on this machine."""


def launch(
    main: Callable[..., int],
    num_gpus: int | None = None,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> int:
    """Calls main(*args) in every process of the run; main returns an exit status, and so does this.

    Under torchrun the environment decides and the other arguments count for nothing. Otherwise num_gpus
    processes start on this machine (None or 0: one).

    Raises:
        LaunchError: more GPUs than there are, or several machines without a common address.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        return _member(
            int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, "env://", main, args
        )
    wanted, present = num_gpus or 0, torch.cuda.device_count()
    if not 0 <= wanted <= present:
        raise LaunchError(
            f"--num-gpus: expected 0 to {present}, the GPUs of this machine, got {wanted}. Leave it out for "
            "a single process, or use `torchrun --nproc-per-node N train_net.py ...` for CPUs."
        )
    local = max(wanted, 1)
    if local * num_machines == 1:
        return main(*args)
    if not 0 <= machine_rank < num_machines:
        raise LaunchError(f"--machine-rank: expected 0 to {num_machines - 1}, got {machine_rank}.")
    if dist_url == "auto":
        if num_machines > 1:
            raise LaunchError("--dist-url: several machines need a common address such as tcp://HOST:PORT.")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    return _spawn(local, (main, local, local * num_machines, machine_rank, dist_url, args))


def _spawn(count: int, args: tuple[Any, ...]) -> int:
    """Starts the processes and waits; the exit status of the first that failed, or 0."""
    context = spawn(_worker, nprocs=count, args=args, join=False)
    while True:
        try:
            if context.join():
                return 0
        except KeyboardInterrupt:
            continue  # the terminal asked every process; they save and end by themselves
        except ProcessExitedException as failure:
            return failure.exit_code


def _worker(
    local_rank: int,
    main: Callable[..., int],
    local: int,
    world_size: int,
    machine_rank: int,
    url: str,
    args: tuple[Any, ...],
) -> None:
    status = _member(machine_rank * local + local_rank, world_size, local_rank, url, main, args)
    if status:
        sys.exit(status)


def _member(
    rank: int, world_size: int, local_rank: int, url: str, main: Callable[..., int], args: tuple[Any, ...]
) -> int:
    _join(rank, world_size, local_rank, url)
    try:
        return main(*args)
    finally:
        # PyTorch 2.4 destroys the group while it holds the interpreter lock, which gloo's thread needs to
        # let go of the last gathered tensors: without this pause a loaded machine can wait for ever.
        time.sleep(0.5)
        dist.destroy_process_group()


def _join(rank: int, world_size: int, local_rank: int, url: str) -> None:
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
    if on_gpu:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world_size, timeout=PATIENCE)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_distributed() -> bool:
    """Whether this process belongs to a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks to people."""
    return rank() == 0


def barrier() -> None:
    """Waits for every process."""
    if is_distributed():
        dist.barrier()


def all_gather_object(item: Any) -> list[Any]:
    """What every process gave, by rank; plain data and CPU tensors."""
    if not is_distributed():
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def highest(value: int, device: torch.device) -> int:
    """The largest of the processes' values: how they agree to stop together."""
    if not is_distributed():
        return value
    box = torch.tensor(value, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box)


def pick_device(name: str = "auto") -> torch.device:
    """The device of this process: "auto" takes its GPU where there is one.

    Raises:
        LaunchError: "cuda" without a GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise LaunchError(
            "MODEL.DEVICE is cuda, but torch finds no GPU. Use `MODEL.DEVICE cpu`, or leave it at auto."
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
