"""Ctrl-C, SIGTERM and a terminal that is closed: stop soon, save, say how to go on. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from surefoot.ranks import most, ranks

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@dataclass
class StopRequest:
    """Which signal asked for the end of the run, if one did. Of several ranks one may have heard it: they stop
    together, where they ask each other."""

    noted: int | None = None
    """The signal that this process has heard."""
    agreed: int | None = None
    """The signal that all ranks know of."""
    twice: bool = False
    """It was asked for again, by somebody who does not want to wait."""

    @property
    def signal(self) -> int | None:
        """The signal that is to be obeyed now."""
        return self.agreed if ranks() > 1 else self.noted

    def ask(self) -> None:
        """Ask the other ranks whether they have heard one. All must ask."""
        if ranks() > 1 and self.agreed is None:
            self.agreed = int(most([self.noted or 0])[0]) or None

    def check(self) -> None:
        """Raises Stopped when the run is to stop: what is in hand can be done again."""
        if self.signal is not None:
            raise Stopped

    def check_together(self) -> None:
        """`ask` and `check`: where all ranks are at the same place."""
        self.ask()
        self.check()


class Stopped(Exception):  # noqa: N818
    """What is in hand is left, as the run is to stop soon: who is killed after a grace time cannot finish it."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and is saved."""

    def __init__(self, signal_number: int, step: int, folder: Path) -> None:
        super().__init__(f"stopped after step {step}; saved in {folder}")
        self.signal = signal_number
        self.step = step
        self.folder = folder


@contextmanager
def asked_to_stop(request: StopRequest) -> Iterator[StopRequest]:
    """While open, SIGINT, SIGTERM and SIGHUP are noted instead of killing the step in hand."""
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python lets only the main thread set handlers
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.noted is not None and number == signal.SIGINT:
            request.twice = True
            raise KeyboardInterrupt
        if request.noted is not None:
            return  # a group's SIGTERM may come from several sides
        request.noted = number

    # What is ignored (nohup) stays ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
