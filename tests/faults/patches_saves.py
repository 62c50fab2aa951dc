"""In a child: SIGKILL at a chosen operation of a save."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from surefoot.runfolder import RunFolder
from surefoot.train.storage import Storage

CHANGING = ("make_folder", "create", "write", "sync", "close", "sync_folder", "rename", "remove")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_operation(number: int, half: bool = False, saves: int = 1, log: str | None = None) -> None:
    """Before the n-th operation since the n-th save made its folder (that is 0), or with half of it done.

    `log`: what the operations are is appended there.
    """
    done = {"saves": 0, "operations": -1}

    def wrapped(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Storage, *given: Any) -> Any:
            done["saves"] += name == "make_folder"
            if done["saves"] >= saves:
                done["operations"] += 1
                if log is not None:
                    with Path(log).open("a") as file:
                        file.write(name + "\n")
                if done["operations"] == number:
                    if half and name == "write":
                        method(self, given[0], given[1][: len(given[1]) // 2])
                    elif half:
                        next(given[0].iterdir()).unlink()
                    die()
            return method(self, *given)

        return operation

    for name in CHANGING:
        setattr(Storage, name, wrapped(name, getattr(Storage, name)))


def in_go_back(syncs: int, after: bool) -> None:
    """Before or after the n-th sync of going back."""
    go_back, fsync = RunFolder.go_back, os.fsync

    def counted(handle: int) -> None:
        nonlocal syncs
        syncs -= 1
        if syncs == 0 and not after:
            die()
        fsync(handle)
        if syncs == 0:
            die()

    def going(self: RunFolder, step: int, events_size: int) -> None:
        os.fsync = counted
        go_back(self, step, events_size)
        os.fsync = fsync

    RunFolder.go_back = going


def at_rename(name: str, to: str, after: bool) -> None:
    """Before or after a file or folder gets another name."""
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        mine = (self.name, Path(target).name) == (name, to)
        if mine and not after:
            die()
        found = rename(self, target)
        if mine:
            die()
        return found

    Path.rename = renamed  # type: ignore[method-assign]


def slow_writes(seconds: float, kill_at_save: int) -> None:
    """Saves take so long that the next one waits for them; SIGKILL right after a save's commit."""
    import time

    from surefoot.train import saver

    write, saves = saver.write, 0

    def slow(*given: Any) -> Path:
        nonlocal saves
        saves += 1
        time.sleep(seconds)
        path = write(*given)
        if saves == kill_at_save:
            die()
        return path

    saver.write = slow
