"""A disk that loses its power: what is on it afterwards, given what was done to it and what of that was synced.

Of a file, content is certain once the file was synced after it was written; of a folder, names are certain once the
folder was synced after they were given. A rename happens whole or not at all. Nothing else is promised: any part of
the rest may be there.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

Tree = dict[str, bytes | None]
"""Path → content; None for a folder."""
NEVER = 1 << 60


@dataclass
class Effect:
    """One change, as the disk sees it: of names in folders, or of a file's content."""

    born: int
    """The operation that it is of."""
    names: tuple[tuple[int, str, int | None], ...] = ()
    """Folder, name, and what is under it from now on."""
    inode: int = -1
    size: int = -1
    """The file is cut to this."""
    at: int = 0
    data: bytes = b""
    certain: int = NEVER
    """The operation that made it survive."""

    @property
    def of_content(self) -> bool:
        return not self.names


Keep = Callable[[Effect], Effect | None]
"""What of a change that is not certain is there."""


class Trace:
    """The operations of a run, as changes of a disk that held an empty folder before."""

    def __init__(self, *logs: Path) -> None:
        lines = [line for log in logs for line in log.read_text().splitlines()]
        self.operations: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.effects: list[Effect] = []
        self.folders: dict[int, dict[str, int]] = {0: {}}
        self._next = 1
        for number, operation in enumerate(self.operations):
            self._do(number, **operation)

    def _find(self, path: str) -> int:
        inode = 0
        for part in PurePosixPath(path).parts:
            inode = self.folders[inode][part]
        return inode

    def _place(self, path: str) -> tuple[int, str]:
        return self._find(str(PurePosixPath(path).parent)), PurePosixPath(path).name

    def _do(self, number: int, op: str, path: str, new: str = "", **more: Any) -> None:
        effect = Effect(number)
        if op in ("mkdir", "create"):
            place, name = self._place(path)
            effect.names = ((place, name, self._next),)
            if op == "mkdir":
                self.folders[self._next] = {}
            self._next += 1
        elif op in ("unlink", "rmdir"):
            effect.names = ((*self._place(path), None),)
        elif op == "rename":
            effect.names = ((*self._place(path), None), (*self._place(new), self._find(path)))
        elif op in ("write", "truncate"):
            effect.inode, effect.size = self._find(path), more.get("size", -1)
            effect.at, effect.data = more.get("at", 0), base64.b64decode(more.get("data", ""))
        elif op in ("sync", "sync_folder"):
            self._sync(number, self._find(path), names=op == "sync_folder")
            return
        else:
            return
        self.effects.append(effect)
        for folder, name, inode in effect.names:
            if inode is None:
                del self.folders[folder][name]
            else:
                self.folders[folder][name] = inode

    def _sync(self, number: int, inode: int, *, names: bool) -> None:
        for effect in self.effects:
            mine = any(folder == inode for folder, _, _ in effect.names) if names else effect.inode == inode
            if mine:
                effect.certain = min(effect.certain, number)

    def after(self, operations: int, keep: Keep) -> Tree:
        """What the disk holds when the power fails after so many operations."""
        folders: dict[int, dict[str, int]] = {}
        contents: dict[int, bytearray] = {}
        for effect in self.effects:
            if effect.born >= operations:
                break
            kept = effect if effect.certain < operations else keep(effect)
            if kept is None:
                continue
            for folder, name, inode in kept.names:
                folders.setdefault(folder, {}).pop(name, None)
                if inode is not None:
                    folders[folder][name] = inode
            if kept.of_content:
                content = contents.setdefault(kept.inode, bytearray())
                if kept.size >= 0:
                    content[:] = content[: kept.size].ljust(kept.size, b"\0")
                content[:] = content.ljust(kept.at, b"\0")
                content[kept.at : kept.at + len(kept.data)] = kept.data
        tree: Tree = {}

        def walk(inode: int, path: PurePosixPath) -> None:
            for name, below in sorted(folders.get(inode, {}).items()):
                here = path / name
                if below in self.folders:
                    tree[str(here)] = None
                    walk(below, here)
                else:
                    tree[str(here)] = bytes(contents.get(below, b""))

        walk(0, PurePosixPath())
        return tree

    def committed(self, operations: int) -> list[int]:
        """Steps whose checkpoints were said to be saved by then."""
        return [o["step"] for o in self.operations[:operations] if o["op"] == "committed"]


def nothing(effect: Effect) -> None:
    """All is lost that was not synced."""
    return


def everything(effect: Effect) -> Effect:
    """The disk was quick: all is there, as after a kill."""
    return effect


def names_only(effect: Effect) -> Effect | None:
    """Names are there and content is not: the empty files of a journal that keeps names alone."""
    return None if effect.of_content else effect


def zeros(effect: Effect) -> Effect:
    """Names and sizes are there, and what should be content is zeros."""
    if not effect.of_content:
        return effect
    return Effect(
        effect.born, inode=effect.inode, size=effect.size, at=effect.at, data=bytes(len(effect.data))
    )


def any_part(seed: int) -> Keep:
    """Whatever the disk came round to, content torn in the middle of a write among it."""
    chance = random.Random(seed)

    def keep(effect: Effect) -> Effect | None:
        drawn = chance.random()
        if drawn < 0.4:
            return None
        if drawn < 0.6 and effect.of_content and effect.data:
            torn = effect.data[: chance.randrange(len(effect.data))]
            return Effect(effect.born, inode=effect.inode, size=effect.size, at=effect.at, data=torn)
        return effect

    return keep


def put(tree: Tree, place: Path) -> None:
    """Make a folder of it."""
    place.mkdir()
    for path, content in tree.items():
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)


def tree_of(place: Path) -> Tree:
    """What a folder holds."""
    return {
        str(path.relative_to(place)): path.read_bytes() if path.is_file() else None
        for path in sorted(place.rglob("*"))
    }
