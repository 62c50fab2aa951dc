"""In a child: every change to a folder, and every sync, written down in order, for `disk.py` to replay.

Changes that Python makes through `os` are seen as they happen; those of libraries in other languages, and of
buffered files, are found by looking when the next operation is written down.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPEN, WRITE, FSTAT = os.open, os.write, os.fstat


class Recorder:
    """Writes down what happens below `root`, one JSON object a line."""

    def __init__(self, root: Path, log: Path, kill_after: tuple[str, str] | None) -> None:
        self.root, self.kill_after = str(root.resolve()), kill_after
        self.lock = threading.RLock()
        self.log = OPEN(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.known: dict[str, tuple[Any, bytes | None]] = {}
        """Path → what its stat was, and its content (None: a folder)."""
        self.look(lambda **_: None)

    def tell(self, **operation: Any) -> None:
        data = operation.pop("data", None)
        if data is not None:
            operation["data"] = base64.b64encode(data).decode()
        WRITE(self.log, json.dumps(operation).encode() + b"\n")
        if self.kill_after == (operation["op"], Path(operation.get("new", operation["path"])).name):
            os.kill(os.getpid(), signal.SIGKILL)

    def look(self, tell: Callable[..., None]) -> None:
        """Tell what has changed since the last look."""
        there: dict[str, os.stat_result] = {}
        for folder, folders, files in os.walk(self.root):
            for name in sorted((*folders, *files)):
                path = f"{folder}/{name}"
                there[path] = Path(path).stat()
        for path in sorted(set(self.known) - set(there), reverse=True):
            tell(op="rmdir" if self.known.pop(path)[1] is None else "unlink", path=self.short(path))
        for path, stat in there.items():
            if os.path.isdir(path):  # noqa: PTH112
                if path not in self.known:
                    tell(op="mkdir", path=self.short(path))
                    self.known[path] = None, None
                continue
            seen = stat.st_ino, stat.st_size, stat.st_mtime_ns
            before, content = self.known.get(path, (None, None))
            if before == seen:
                continue
            with open(path, "rb") as file:  # noqa: PTH123
                now = file.read()
            if content is None:
                tell(op="create", path=self.short(path))
                content = b""
            if not now.startswith(content):
                same = next(
                    (n for n, (a, b) in enumerate(zip(content, now, strict=False)) if a != b), len(now)
                )
                tell(op="truncate", path=self.short(path), size=same)
                content = content[:same]
            if len(now) > len(content):
                tell(op="write", path=self.short(path), at=len(content), data=now[len(content) :])
            self.known[path] = seen, now

    def short(self, path: str) -> str:
        return path[len(self.root) + 1 :]

    def inside(self, path: str) -> bool:
        return path.startswith(self.root + "/")

    def now(self, path: Any, folder: int | None = None) -> str:
        """The whole path of what an operation is about."""
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")  # noqa: PTH115
        base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")  # noqa: PTH109, PTH115
        return os.path.normpath(os.path.join(base, os.fspath(path)))  # noqa: PTH118

    def naming(self, op: str, do: Callable[..., Any]) -> Callable[..., Any]:
        """For what makes, moves or takes away a name."""

        def wrapped(path: Any, *rest: Any, **more: Any) -> Any:
            with self.lock:
                at = self.now(path, more.get("dir_fd"))
                new = self.now(rest[0]) if op == "rename" else at
                if not (self.inside(at) or self.inside(new)):
                    return do(path, *rest, **more)
                self.look(self.tell)
                result = do(path, *rest, **more)
                if op == "rename":
                    moved = [p for p in self.known if p == at or p.startswith(at + "/")]
                    found = {new + p[len(at) :]: self.known.pop(p) for p in moved}
                    self.known = {p: k for p, k in self.known.items() if p != new} | found
                    self.tell(op=op, path=self.short(at), new=self.short(new))
                    return result
                if op == "mkdir":
                    self.known[at] = None, None
                else:
                    self.known.pop(at, None)
                self.tell(op=op, path=self.short(at))
                return result

        return wrapped

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        with self.lock:
            handle = OPEN(path, flags, mode, dir_fd=dir_fd)
            if flags & (os.O_CREAT | os.O_TRUNC) and self.inside(self.now(handle)):
                self.look(self.tell)
            return handle

    def write(self, handle: int, data: Any) -> int:
        with self.lock:
            inside = self.inside(self.now(handle))
            if inside:
                self.look(self.tell)
            written = WRITE(handle, data)
            if inside:
                self.look(self.tell)
            return written

    def fsync(self, sync: Callable[[int], None], handle: int) -> None:
        with self.lock:
            path = self.now(handle)
            if self.inside(path) or path == self.root:
                self.look(self.tell)
            sync(handle)
            if self.inside(path) or path == self.root:
                folder = os.path.isdir(path)  # noqa: PTH112
                self.tell(op="sync_folder" if folder else "sync", path=self.short(path))


def record(root: str, log: str, kill_after: list[str] | None = None) -> None:
    """Record to `log` what happens below `root`; SIGKILL right after an operation: its kind, and the last part of
    the (new) name."""
    from surefoot.train import saver

    found = Recorder(Path(root), Path(log), (kill_after[0], kill_after[1]) if kill_after else None)
    fsync, write = os.fsync, saver.write
    for name, op in (("mkdir",) * 2, ("rename",) * 2, ("replace", "rename"), ("unlink",) * 2, ("rmdir",) * 2):
        setattr(os, name, found.naming(op, getattr(os, name)))
    os.open, os.write = found.open, found.write
    os.fsync = lambda handle: found.fsync(fsync, handle if isinstance(handle, int) else handle.fileno())

    def told(storage: Any, folder: Path, snapshot: Any, *rest: Any) -> Path:
        path = write(storage, folder, snapshot, *rest)
        with found.lock:
            found.tell(op="committed", path=path.name, step=snapshot.step)
        return path

    saver.write = told
