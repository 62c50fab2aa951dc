"""The processes (ranks) that train together: how they meet, what they tell each other, how they agree.

1. `join` meets the others, if the launcher (torchrun, Ray, whoever made a process group) says that there are any.
2. Numbers are added up and texts exchanged, without pickle; `together` lets all fail where one does.
3. `store` is for threads: what is written there, everybody can look up, and nobody waits.

All of it works without a process group too: one rank.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from surefoot.errors import StoppedError, UserError

Result = TypeVar("Result")
SLACK = timedelta(seconds=60)
"""How much longer a collective waits than the watchdog, which knows who is missing."""


class Elsewhere(UserError):  # noqa: N818
    """Another rank has found something wrong, and says it."""


class StoppedElsewhere(StoppedError):  # noqa: N818
    """Another rank had to stop, and says why."""


class _Alone(threading.local):
    """Whether this thread takes its process for the only one; what other threads tell the ranks goes on."""

    now = False


_alone = _Alone()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _alone.now else 0


def ranks() -> int:
    """How many processes take a step together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() and not _alone.now else 1


@contextmanager
def by_itself() -> Iterator[None]:
    """While open, this thread takes its process for the only one: it computes all by itself, and asks nobody."""
    before, _alone.now = _alone.now, True
    try:
        yield
    finally:
        _alone.now = before


def local_rank() -> int:
    """Which of the processes of its machine this is, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank())) if ranks() > 1 else 0


def local_ranks() -> int:
    """How many processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks())) if ranks() > 1 else 1


def launched() -> bool:
    """Whether a launcher has started this process as one of several."""
    return dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) > 1


def me() -> str:
    """This rank, for people: which, where, what process."""
    return f"rank {rank()} (process {os.getpid()} on {socket.gethostname()})"


def join(timeout_seconds: float, use_cpu: bool = False) -> None:
    """Meet the other processes, if this one was launched with others, and give it its own GPU.

    A collective that waits longer than `timeout_seconds` (and a little) fails. A process group that is there is
    used as it is. Raises UserError when the environment names a group that cannot be met.
    """
    cuda = torch.cuda.is_available() and not use_cpu
    if cuda and launched():
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if place >= torch.cuda.device_count():
            raise UserError(
                f"{place + 1} processes and more were started on {socket.gethostname()}, which has "
                f"{torch.cuda.device_count()} GPUs: start one process a GPU (--nproc)"
            )
        torch.cuda.set_device(place)
    if dist.is_initialized():
        _talking()
        return
    if not launched():
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set: start the processes "
            "with torchrun, or with surefoot train --nproc"
        )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds) + SLACK
    )


@cache
def _talking() -> dist.ProcessGroup | None:
    """The group in which numbers and texts on the CPU go round, so that no GPU waits for them; None: the default
    one. All ranks must call it first at the same time: in `join`."""
    backends = str(dist.get_backend_config())
    made: Any = None if "gloo" in backends else dist.new_group(backend="gloo")
    return made


def leave() -> None:
    """Part from the others in order."""
    if dist.is_initialized():
        _talking.cache_clear()
        dist.destroy_process_group()


def store(purpose: str) -> Any:
    """A `torch.distributed.Store` that all ranks can write to and look up, under names of `purpose`, through a
    connection of its own."""
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    whole: Any = _get_default_store()
    return PrefixStore(f"surefoot/{purpose}", whole.clone())


# Numbers and texts -------------------------------------------------------------------------------------


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the ranks' tensors, the same bits on all; with one rank, `tensor` itself."""
    if ranks() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def add_up_numbers(values: Iterable[float]) -> list[float]:
    """The sums of the ranks' numbers, place by place."""
    values = list(values)
    if ranks() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total, group=_talking())
    return total.tolist()


def most(values: Iterable[float]) -> list[float]:
    """The largest of the ranks' numbers, place by place."""
    values = list(values)
    if ranks() == 1:
        return values
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_talking())
    return found.tolist()


def texts(own: str) -> list[str]:
    """What each rank says, by rank; the same on all."""
    if ranks() == 1:
        return [own]
    said = torch.frombuffer(bytearray(own.encode() or b"\0"), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(ranks())]
    dist.all_gather(sizes, torch.tensor([len(own.encode())]), group=_talking())
    lengths = [int(size) for size in sizes]
    padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
    padded[: len(own.encode())] = said[: len(own.encode())]
    found = [torch.zeros_like(padded) for _ in range(ranks())]
    dist.all_gather(found, padded, group=_talking())
    return [bytes(part[:size].tolist()).decode() for part, size in zip(found, lengths, strict=True)]


def told(text: str) -> str:
    """On all ranks, what the ranks say that say anything, one after the other."""
    return "".join(texts(text))


# Agreeing ----------------------------------------------------------------------------------------------


def together(do: Callable[[], Result]) -> Result:
    """`do()` on every rank. Where it raises an error on one, all raise: that rank its own, so that it is said once,
    the others `Elsewhere` (a UserError) or `StoppedElsewhere`. All ranks must call it."""
    failed: Exception | None = None
    found: Any = None
    try:
        found = do()
    except Exception as error:
        failed = error
    if ranks() == 1:
        if failed is not None:
            raise failed
        return found
    kind = "" if failed is None else "user" if isinstance(failed, UserError) else "other"
    if not any(said := texts(f"{kind}:{failed}" if kind else "")):
        return found
    first = next(number for number, one in enumerate(said) if one)
    if failed is not None and first == rank():
        raise failed
    kind, _, message = said[first].partition(":")
    raise (Elsewhere if kind == "user" else StoppedElsewhere)(f"rank {first}: {message}") from failed


def by_first(do: Callable[[], Result]) -> Result | None:
    """`do()` on rank 0 alone, the others having waited for it; None on them. Errors as in `together`."""
    return together(lambda: do() if rank() == 0 else None)


def poll(there: Callable[[], bool], gone: Callable[[], bool] = lambda: False, pause: float = 0.05) -> bool:
    """Wait until something is there, however long; false when what would bring it is gone."""
    while not there():
        if gone():
            return False
        time.sleep(pause)
        pause = min(1.0, pause * 1.2)
    return True
