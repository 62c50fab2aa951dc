"""The processes (ranks) that train together: how they meet, what they tell each other, how they agree.

1. `join` meets the others, if the launcher (torchrun, Ray, whoever made a process group) says that there are any.
2. Numbers are added up and texts exchanged, without pickle; `together` lets all fail where one does.
3. `store` is for threads: what is written there, everybody can look up, and nobody waits.

All of it works without a process group too: one rank.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

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
    backend, timeout = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=timeout_seconds) + SLACK
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=timeout)
        return
    own, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents: Any = TCPStore(*address, is_master=False, timeout=timeout, wait_for_workers=False)
    meeting = PrefixStore(_meeting(agents, own, count, timeout), agents)
    dist.init_process_group(backend, timeout=timeout, store=meeting, rank=own, world_size=count)


def _meeting(agents: Any, own: int, count: int, timeout: timedelta) -> str:
    """A name that these processes have in common, and no others before them.

    torchrun keeps one store over all restarts. What processes that are gone have left there (where they listened)
    would be read for that of the ones of now, if these are later. So rank 0 asks those whose marks it finds, anew
    when one changes, until all have answered: who is gone does not.
    """
    mark, deadline, at = uuid4().hex, time.monotonic() + timeout.total_seconds(), "surefoot/meeting/"
    marks = [f"{at}mark/{one}" for one in range(count)]
    name, asked = "", []

    def there() -> bool:
        nonlocal name, asked
        if own == 0:
            if not agents.check(marks):
                return False
            found = [text.decode() for text in agents.multi_get(marks)]
            if found != asked:
                name, asked = uuid4().hex, found
                agents.set(f"{at}asked", json.dumps([name, asked]))
            if not agents.check([f"{at}{name}/{one}" for one in range(1, count)]):
                return False
            agents.set(f"{at}{name}/all", "")
            return True
        if not agents.check([f"{at}asked"]):
            return False
        name, asked = json.loads(agents.get(f"{at}asked"))
        if mark not in asked:
            return False
        agents.set(f"{at}{name}/{own}", "")
        return agents.check([f"{at}{name}/all"])

    agents.set(marks[own], mark)
    if not poll(there, gone=lambda: time.monotonic() > deadline):
        raise StoppedError(f"rank {own} of {count} has waited {timeout.total_seconds():g} s for the others")
    return f"surefoot/{name}"


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
    from torch.distributed.distributed_c10d import _get_default_store

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
