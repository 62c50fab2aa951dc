"""In a child that is one of several ranks: SIGKILL at a chosen operation of its part of a save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.train.storage import Storage
from tests.faults.patches_saves import CHANGING, die


def at_operation_of(step: int, number: int, after: bool = False, log: str | None = None) -> None:
    """Before the n-th operation (from 0) of this rank on the checkpoint of a step, or with it done.

    `log`: what the operations are is appended there.
    """
    done = -1

    def wrapped(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Storage, *given: Any) -> Any:
            nonlocal done
            begins = (
                name != "remove"
                and isinstance(given[0], Path)
                and f".step-{step:08d}.partial" in str(given[0])
            )
            if done < 0 and not begins:
                return method(self, *given)
            done += 1
            if log is not None:
                with Path(log).open("a") as file:
                    file.write(name + "\n")
            if done == number and not after:
                die()
            found = method(self, *given)
            if done == number:
                die()
            return found

        return operation

    for name in CHANGING:
        setattr(Storage, name, wrapped(name, getattr(Storage, name)))
