"""Opening files that somebody else has named: ordinary ones only."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any

from surefoot.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def open_regular(path: Path, *, follow: bool = True) -> IO[bytes]:
    """`path`, open for reading bytes. A pipe without a writer is not waited for, a device is not read.

    `follow` False refuses a symbolic link too. Raises UserError for what is no ordinary file, OSError as `open`
    does.
    """
    if not follow and path.is_symlink():
        raise UserError(f"{path} is a link; put the file itself there")
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UserError(f"{path} is {kind}, not an ordinary file; put a file there")
    return os.fdopen(handle, "rb")


def text_of(path: Path, most_bytes: int, **how: Any) -> str:
    """The UTF-8 text of an ordinary file of at most so many bytes.

    Raises UserError for what is no such file, also one that is larger or not UTF-8; OSError as `open` does.
    """
    with open_regular(path, **how) as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise UserError(f"{path} is larger than {most_bytes:,} bytes, more than such a file can have")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte offset {error.start}") from None
