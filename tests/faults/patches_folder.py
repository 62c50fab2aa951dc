"""Hooks for children whose run folder is on a strange or full disk."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any


def no_locks() -> None:
    """flock says that this file system has none; `asked` is there once it was asked."""

    def refuse(handle: int, how: int) -> None:
        Path("asked").touch()
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse


def locked_far_away() -> None:
    def refuse(handle: int, how: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    fcntl.flock = refuse


def over_quota(what: str) -> None:
    """Writing or syncing ("write", "fsync") any file says that the quota is used up; the terminal is no file."""

    def refuse(handle: int, *_: Any) -> Any:
        if handle > 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return plain(handle, *_)

    plain = getattr(os, what)
    setattr(os, what, refuse)


def no_processes() -> None:
    """`processes` has a line for each process that the command starts, in whatever way."""
    import sys

    Path("processes").touch()

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"):
            with Path("processes").open("a") as file:
                print(event, args, file=file)

    sys.addaudithook(note)


def without_roots_rights() -> None:
    """Rights bind this child though it is root's: it lays down the capabilities to pass them over (Linux)."""
    import ctypes

    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # third version, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, sets) == 0
    for index in range(3):
        sets[index] &= ~0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    assert libc.capset(header, sets) == 0
