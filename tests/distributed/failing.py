"""What fails on one of several ranks while they save."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from surefoot.ranks import rank
from surefoot.train import agreement
from surefoot.train.storage import Storage


class Failing(Storage):
    """Fails, sleeps or raises something else on one rank, where it is told to."""

    def __init__(self, where: int, method: str, do: Callable[[], None], times: int = 1) -> None:
        if rank() == where:
            setattr(self, method, self._then(getattr(self, method), do))
        self.times = times

    def _then(self, method: Callable[..., Any], do: Callable[[], None]) -> Callable[..., Any]:
        def operation(*given: Any) -> Any:
            if self.times:
                self.times -= 1
                do()
            return method(*given)

        return operation


def raising(error: Exception) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
LOST = OSError(errno.EIO, os.strerror(errno.EIO))
FAULTS: dict[str, Callable[[], dict[str, Any]]] = {
    "full on 1": lambda: {"storage": Failing(1, "write", raising(FULL))},
    "full on 0": lambda: {"storage": Failing(0, "write", raising(FULL))},
    "lost once on 1": lambda: {"storage": Failing(1, "sync", raising(LOST))},
    "lost for good on 1": lambda: {"storage": Failing(1, "sync", raising(LOST), times=3)},
    "manifest lost once": lambda: {"storage": Failing(0, "rename", raising(LOST))},
    "a bug on 1": lambda: {"storage": Failing(1, "create", raising(ValueError("a bug")))},
    "silent 1": lambda: {"storage": Failing(1, "sync", lambda: time.sleep(2.0)), "timeout_seconds": 0.4},
    "deaf 1": lambda: {"deaf": True},
    "no memory on 1": lambda: {"memory_left": lambda: 0 if rank() == 1 else 1 << 40},
    "no events": lambda: {"events": raising(LOST)},
    "no room for all": lambda: {"free": True},
}


@contextmanager
def hearing_no_verdict() -> Iterator[None]:
    """While open, this rank does not come to know what has become of a save."""
    look = agreement.Agreement._look

    def deaf(self: agreement.Agreement, whats: Sequence[str], deadline: float) -> tuple[str, Any]:
        found = look(self, whats, deadline)
        if whats == [agreement.VERDICT]:
            raise agreement.SilentError("nothing was heard")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement.Agreement, "_look", deaf)
        yield


class TooLarge:
    """A tensor that there is no memory for."""

    def to(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")
