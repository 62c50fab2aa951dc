"""Rows are read and tokenised once on each machine, however many ranks it has.

1. The ranks of one machine that were given the same rows are a party, led by the lowest of them.
2. The leader reads, and tells in the store how far it is; the others look there now and then. Nobody waits in a
   collective, which would end by its time-out.
3. The leader names the folder of the finished set, and leaves it there until all of its party have mapped it.
4. Everybody waits until everybody is done, or one has failed; then all go on, or all fail (`ranks.together`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from surefoot.ranks import poll, rank, ranks, store, texts, together

Result = TypeVar("Result")
T = TypeVar("T")

FIRST_SECONDS = 10.0
"""How long nothing is said of a wait, and then"""
PAUSE_SECONDS = 30.0
"""how often something is."""
TOLD_SECONDS = 1.0
"""Between two times that a leader tells how far it is, and looks whether another has failed."""


class NowAndThen:
    """Whether it is time to say something again."""

    def __init__(self, first: float | None = None, pause: float | None = None) -> None:
        """Seconds until the first time, and between two; default: as for people who wait."""
        self._next = time.monotonic() + (FIRST_SECONDS if first is None else first)
        self._pause = PAUSE_SECONDS if pause is None else pause

    def due(self) -> bool:
        """True if so; then not again until the pause is over."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._pause
        return True


class Party:
    """The ranks of this machine that read the same rows. All ranks must make it, and use it, together."""

    def __init__(self, source: str) -> None:
        """`source`: what tells these rows from others."""
        own = {"at": [machine(), source], "host": socket.gethostname(), "call": secrets.token_hex(8)}
        said = [json.loads(text) for text in texts(json.dumps(own))]
        places = [one["at"] for one in said]
        self.hosts: list[str] = [one["host"] for one in said]
        """Of each rank."""
        self._leaders = [places.index(place) for place in places]
        self.leader = self._leaders[rank()]
        """The rank that reads for this one."""
        self.others = self._leaders.count(self.leader) - 1
        """How many ranks this machine's leader reads for, besides itself."""
        self._store: Any = store(f"data/{said[0]['call']}")

    @property
    def leads(self) -> bool:
        """Whether this rank reads."""
        return self.leader == rank()

    def read(
        self, make: Callable[[], Result], take: Callable[[Any], Result], waits: Callable[[str], None]
    ) -> Result:
        """What `make` returns on the leader, having called `share`; on the others, what `take` makes of what was
        shared. Where either raises an error on one rank, all raise, as in `together`. `waits` is told now and then
        whom this leader waits for once it is done itself."""

        def own() -> Result | None:
            try:
                found = make() if self.leads else self._taken(take)
            except _Failed:
                return None  # `together` knows who, and why
            except Exception:
                self._store.set("failed", str(rank()))
                raise
            self._meet(waits)
            return found

        found = together(own)
        assert found is not None, "a rank that has failed has not said so"
        return found

    # The leader ----------------------------------------------------------------------------------------

    def counted(self, rows: Iterable[T]) -> Iterator[T]:
        """The same rows, while the others are told how many there were. Stops when another rank has failed."""
        pace = NowAndThen(0, TOLD_SECONDS)
        for count, row in enumerate(rows):
            if pace.due():
                if self._failed():
                    raise _Failed
                self._store.set(self._key("rows"), str(count))
            yield row

    def share(self, about: Mapping[str, Any]) -> None:
        """Tell the others what is made, plain values for JSON; returns once they have taken it."""
        self._store.set(self._key("made"), json.dumps(about))
        poll(lambda: self._store.add(self._key("taken"), 0) >= self.others)

    # The others ----------------------------------------------------------------------------------------

    def _taken(self, take: Callable[[Any], Result]) -> Result:
        made = self._key("made")
        try:
            if not poll(lambda: self._store.check([made]), gone=self._failed):
                raise _Failed
            return take(json.loads(self._store.get(made)))
        finally:
            self._store.add(self._key("taken"), 1)  # the leader waits for no more of this rank

    # All -----------------------------------------------------------------------------------------------

    def _meet(self, waits: Callable[[str], None]) -> None:
        """Wait, without a time-out, until all have their rows or one has failed."""
        pace = NowAndThen()
        self._store.add("done", 1)

        def there() -> bool:
            if self._store.add("done", 0) >= ranks():
                return True
            if self.leads and pace.due() and (late := self._late()):
                waits(late)
            return False

        poll(there, gone=self._failed)

    def _late(self) -> str:
        """Which leaders still read, and how far they are."""
        return "; ".join(
            f"rank {leader} on {self.hosts[leader]} has read {int(self._store.get(key)):,} rows"
            for leader in dict.fromkeys(self._leaders)
            if not self._store.check([self._key("made", leader)])
            and self._store.check([key := self._key("rows", leader)])
        )

    def _failed(self) -> bool:
        return self._store.check(["failed"])

    def _key(self, what: str, leader: int | None = None) -> str:
        return f"{self.leader if leader is None else leader}/{what}"


class _Failed(Exception):  # noqa: N818
    """Another rank has failed, and says why in `together`."""


def machine() -> str:
    """What the processes of one machine have in common, and no other's; of a launcher's group, if there are several
    on one machine."""
    return f"{socket.gethostname()}/{os.environ.get('GROUP_RANK', '')}"


def runs(numbers: Iterable[int]) -> str:
    """Ranks for people: "0-3, 8"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, run)) for run in found)
