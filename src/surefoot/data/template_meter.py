"""What one rendering of a chat template may cost, and the counting of it.

A template comes with a model, so whoever published the model wrote it. It runs in this process: nothing can stop
Python in the middle of an operation. So an operation is refused before it is done when what it would make is too
large, and the clock is looked at between operations, each of which is short because what it works on is small.

No value of a template is heavier than `MOST`. The weight of a text is its characters; that of a list, all that is
in it, as often as it stands there, since that is what writing, comparing and sorting it costs: a list of two of a
list of two of a list, thirty deep, is small in memory and takes for ever to write.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

SECONDS = 2.0
"""Of computing, for one rendering."""
MOST = 1 << 24
"""Characters of a text; weight of a list."""
FEW = 1_000_000
"""Pieces that a text may be split into, characters that are looked at one by one."""
MEMORY = 512 << 20
"""Bytes that a rendering may add to the process."""
LOOK = 1 << 24
"""Characters made after which memory is looked at."""
BITS = 8192
"""Of an integer."""
LONG = 1 << 14
"""Characters from which on a text is worth counting at once."""
ENTRY = 16
"""Weight of an entry, whatever it is."""

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
CONTAINERS = (list, tuple, dict, set, frozenset, *_VIEWS)
_STATM = Path("/proc/self/statm")
_KNOWN = 32
"""Lists whose weight is remembered, so that growing one by one entry at a time stays cheap."""


class TooMuch(Exception):  # noqa: N818
    """The rendering costs too much; the text says what, as in "the chat template ..."."""


class Meter:
    """The costs of one rendering so far."""

    __slots__ = ("_base", "_began", "_deadline", "_known", "_unseen")

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new rendering begins."""
        self._began = thread_time()
        self._deadline = monotonic() + SECONDS
        self._unseen = 0
        self._base: int | None = None
        self._known: dict[int, tuple[Any, int]] = {}

    def tick(self) -> None:
        """Raises TooMuch when the time is over."""
        if monotonic() > self._deadline:
            # A process that was stopped, or shares its core, is not to blame: what counts is its computing.
            left = SECONDS - (thread_time() - self._began)
            if left <= 0:
                raise TooMuch(f"took more than {SECONDS:g} s")
            self._deadline = monotonic() + left

    def room(self, characters: int, most: int = MOST) -> None:
        """Raises TooMuch when something is to be made that is larger than it may be."""
        if characters > most:
            raise TooMuch(f"made more than {min(most, MOST):,} characters or entries at once")

    def argument(self, value: int, most: int = MOST) -> None:
        """Raises TooMuch when a width, count or precision is larger than it may be."""
        if value > most:
            raise TooMuch(f"asked for a width, count or precision of more than {most:,}")

    def made(self, characters: int) -> None:
        """Something was made. Raises TooMuch when it is too large, or all that is kept takes too much memory."""
        self.room(characters)
        self._unseen += characters
        if self._unseen > LOOK:
            self._unseen = 0
            self.tick()
            held = resident()
            if self._base is None:
                self._base = held
            elif held - self._base > MEMORY:
                raise TooMuch(f"took more than {MEMORY >> 20} MB of memory")

    def checked(self, value: Any) -> Any:
        """The value itself. Raises TooMuch when it is too heavy."""
        if isinstance(value, str):
            self.made(len(value))
        elif isinstance(value, CONTAINERS):
            self.made(self.weight(value))
        elif isinstance(value, int) and value.bit_length() > BITS:
            raise TooMuch(f"made a number of more than {BITS} bits")
        return value

    def weight(self, value: Any) -> int:
        """How much it is to write, compare or sort `value`. Raises TooMuch when that is too much."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, CONTAINERS):
            return ENTRY
        known = self._known.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        return self.know(value, self._counted(value))

    def know(self, value: Any, weight: int) -> int:
        """Remember the weight of a list that has just been made."""
        self.room(weight)
        while len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        self._known[id(value)] = (value, weight)
        return weight

    def _counted(self, value: Any) -> int:
        total, rest = 0, [value]
        while rest:
            part = rest.pop()
            if isinstance(part, str):
                total += len(part)
            elif (known := self._known.get(id(part))) is not None and known[0] is part:
                total += known[1]
            elif isinstance(part, CONTAINERS):
                total += ENTRY * len(part)
                self.room(total)
                if isinstance(part, Mapping):
                    rest += part.keys()
                    rest += part.values()
                else:
                    rest += part
            elif isinstance(part, int):
                total += part.bit_length() // 3
            if total > MOST:
                break
        self.room(total)
        return total


def resident() -> int:
    """Bytes of memory that the process holds; where that cannot be read, the most it has ever held."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource  # not on Windows, where the above cannot be read either

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
