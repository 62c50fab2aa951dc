"""How the ranks' threads agree on a save: every rank has written its part, or nobody commits.

Threads make no collectives: they say things under names in a store, and look there. Of one attempt:

1. The first rank makes the folder and says its name.
2. Each rank writes its part and says what it has written, or what has failed.
3. The first rank commits once all have, and gives the verdict, which all obey: the same error is raised on each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from surefoot.errors import UserError
from surefoot.ranks import Elsewhere, by_first, me, rank, texts
from surefoot.train.storage import Storage

FOLDER, VERDICT = "folder", "verdict"
PATIENCE = 3
"""So many times as long as the first rank waits for the others do they wait for it: it has more to do."""
SOONEST, LATEST = 0.005, 0.25
"""Seconds between two looks."""
LOOK_SECONDS = 10.0
"""What one machine writes, the others must see within this time."""
Files = dict[str, dict[str, Any]]


class NotWrittenError(Exception):
    """A rank has not written its part: why, in words."""


class SilentError(NotWrittenError):
    """A rank has said nothing in time."""


class _OverError(Exception):
    """The verdict is given already."""


class Agreement:
    """What is said of one attempt to save. Used by one thread of each rank."""

    def __init__(
        self,
        store: Any,
        name: str,
        *,
        writers: Sequence[int],
        timeout_seconds: float,
        going: Callable[[], None],
    ) -> None:
        """`name`: the same on all ranks, another for each attempt; `writers`: ranks that have something to write,
        from 0 on; `going` is called while something is waited for, and may raise to give up."""
        self.store, self.name, self.writers = store, name, writers
        self.timeout_seconds, self._going = timeout_seconds, going
        self._said: list[str] = []

    def lead(
        self, make: Callable[[], str], part: Callable[[str], Files], commit: Callable[[str, Files], None]
    ) -> None:
        """The first rank's side: `make` the folder, write its own `part` there, `commit` everybody's files.

        Raises what fails here; of another rank, OSError where it was one, else NotWrittenError.
        """
        try:
            name = make()
            self._say(FOLDER, name)
            files = part(name)
            deadline = time.monotonic() + self.timeout_seconds
            for number in self.writers[1:]:
                files |= self._of(number, deadline)
            commit(name, files)
        except BaseException as error:
            words = _words(error)
            self._say(VERDICT, {"failed": words})
            self._let_them_stop(error)
            if isinstance(error, OSError):
                raise _error(words) from error
            raise
        self._say(VERDICT, {"failed": None})

    def follow(self, part: Callable[[str], Files]) -> None:
        """The other ranks' side. Raises as `lead` does."""
        deadline = time.monotonic() + PATIENCE * self.timeout_seconds
        if rank() in self.writers:
            try:
                key, said = self._look([FOLDER, VERDICT], deadline)
                if key == FOLDER:
                    self._say(str(rank()), {"files": part(said)})
            except BaseException as error:
                self._say(str(rank()), {"failed": _words(error)})
                if not isinstance(error, Exception):
                    raise
        _, verdict = self._look([VERDICT], time.monotonic() + PATIENCE * self.timeout_seconds)
        if verdict["failed"] is not None:
            raise _error(verdict["failed"])

    def refuse(self, error: Exception) -> None:
        """The first rank's side, when it does not even begin."""
        self._say(VERDICT, {"failed": _words(error) | {"errno": None}})

    def going(self) -> None:
        """To be called between pieces: raises when there is no use in writing on."""
        self._going()
        if rank() and self.store.check([self._key(VERDICT)]):
            raise _OverError

    def forget(self) -> None:
        """Take away what this rank has said. Everybody must have heard it."""
        for key in self._said:
            with suppress(Exception):  # not every store can
                self.store.delete_key(key)

    def _let_them_stop(self, error: BaseException) -> None:
        """What the others have begun is taken away next; they look at the verdict at each piece."""
        deadline = time.monotonic() + self.timeout_seconds
        with suppress(Exception):
            for number in self.writers[1:] if not isinstance(error, SilentError) else ():
                self._look([str(number)], deadline)

    def _of(self, number: int, deadline: float) -> Files:
        try:
            _, said = self._look([str(number)], deadline)
        except SilentError:
            raise SilentError(
                f"rank {number} had not written its part {self.timeout_seconds:.0f} s after rank 0 (ddp_timeout)"
            ) from None
        if "failed" in said:
            raise _error(said["failed"] | {"said": f"rank {number}: {said['failed']['said']}"})
        return said["files"]

    def _key(self, what: str) -> str:
        return f"{self.name}/{what}"

    def _say(self, what: str, content: Any) -> None:
        self._said.append(self._key(what))
        self.store.set(self._key(what), json.dumps(content))

    def _look(self, whats: Sequence[str], deadline: float) -> tuple[str, Any]:
        """The first of some things that is said, and what. Raises SilentError."""
        pause = SOONEST
        while True:
            for what in whats:
                if self.store.check([self._key(what)]):
                    return what, json.loads(self.store.get(self._key(what)))
            if time.monotonic() > deadline:
                raise SilentError(f"{me()} has heard nothing of the save any more")
            self._going()
            time.sleep(pause)
            pause = min(LATEST, pause * 1.5)


def _words(error: BaseException) -> dict[str, Any]:
    """An error, for the other ranks."""
    if isinstance(error, OSError):
        return {"errno": error.errno, "said": error.strerror or str(error)}
    known = isinstance(error, NotWrittenError)
    return {"errno": None, "said": str(error) if known else f"{type(error).__name__}: {error}"}


def _error(words: dict[str, Any]) -> Exception:
    """The same on all ranks: what is tried again on one is on all."""
    number, said = words["errno"], words["said"]
    return NotWrittenError(said) if number is None else OSError(number, said)


def refuse_apart(storage: Storage, folder: Path, word: str) -> None:
    """Raises UserError when some rank has another folder of this name. All ranks must call it, with the same word,
    while no thread does anything there."""
    name = f".step-seen-{word}"
    by_first(lambda: storage.make_folder(folder / name))
    missing = " and ".join(filter(None, texts("" if _sees(folder, name) else me())))
    by_first(lambda: storage.remove(folder / name))
    if missing:
        raise (UserError if rank() == 0 else Elsewhere)(
            f"output_dir: {folder} must be on a file system that all machines share: what rank 0 writes there is "
            f"not seen by {missing}"
        )


def _sees(folder: Path, name: str) -> bool:
    """Whether a name comes to be in a folder; of one on a network the answer may be some seconds old."""
    deadline = time.monotonic() + LOOK_SECONDS
    while True:
        with suppress(OSError):
            if name in (path.name for path in folder.iterdir()):
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
