"""Who is missing: when the ranks wait too long for one another, the ones that hang are named, and all end.

Each rank says where it is through the launcher's store, from a thread of its own: a process that is frozen says
nothing any more; one that hangs in its main thread says that it is where it was. Without this, they would wait for
the collective's time-out, and it would name nobody.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from surefoot.ranks import me, rank, ranks, store

BEATS = 10
"""So often in its time limit each rank says that it is there, but at most once a second."""


class Watchdog:
    """Watches over the ranks of a run while it is open (`watching`)."""

    def __init__(self, limit_seconds: float, end: Callable[[int], None] = os._exit) -> None:
        self.limit, self._end = limit_seconds, end
        self._place, self._where, self._since = 0, "the start", time.monotonic()
        self._closed = threading.Event()

    def at(self, where: str) -> None:
        """The main thread is here. All ranks pass the same places in the same order."""
        self._where, self._since = where, time.monotonic()
        self._place += 1

    @contextmanager
    def watching(self) -> Any:
        """While open, a thread watches; with one rank there is nobody to wait for."""
        if ranks() == 1:
            yield self
            return
        self._store = store("watchdog")
        self.at("the start")
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._closed.set()
            thread.join(timeout=5)

    def _watch(self) -> None:
        pause, beat = min(1.0, self.limit / BEATS), 0
        try:
            while not self._closed.wait(pause):
                beat += 1
                self._say(beat)
                waited = time.monotonic() - self._since
                if waited > self.limit and not self._closed.is_set():
                    self._speak_and_end(pause, beat)
                    return
        except Exception as error:  # the store is gone: whoever holds it is
            if not self._closed.is_set() and time.monotonic() - self._since > self.limit:
                self._last_words(f"the launcher's store does not answer ({error}): its machine may be gone")

    def _say(self, beat: int) -> None:
        self._store.set(str(rank()), json.dumps([beat, self._place, self._where, me()]))

    def _heard(self) -> list[list[Any] | None]:
        return [
            json.loads(self._store.get(str(one))) if self._store.check([str(one)]) else None
            for one in range(ranks())
        ]

    def _speak_and_end(self, pause: float, beat: int) -> None:
        before = self._heard()
        time.sleep(3 * pause)
        self._say(beat + 1)
        after = self._heard()
        silent = [one for one in range(ranks()) if after[one] is None or after[one] == before[one]]
        silent = [one for one in silent if one != rank()]
        places = {one: said[1] for one, said in enumerate(after) if said is not None}
        first = min(places.values())
        behind = silent or [one for one, place in places.items() if place == first]
        if not silent and len(behind) == ranks():
            said = f"all {ranks()} ranks have been in {self._where} for {self.limit:g} s"
        else:
            named = [
                f"{said[3]}, last in {said[2]}" if (said := after[one]) else f"rank {one}" for one in behind
            ]
            does = "has stopped answering (frozen, or its machine is gone)" if silent else "hangs there"
            said = f"{'; '.join(named)}: {does}; the others have waited {self.limit:g} s in {self._where}"
        speaker = min(one for one in range(ranks()) if one not in silent)
        self._last_words(said if rank() == speaker else "")

    def _last_words(self, said: str) -> None:
        if said:
            print(f"surefoot: {said}", file=sys.stderr, flush=True)
        self._end(1)
