"""Ctrl-C, SIGTERM and a terminal that is closed: stop soon, save, say how to go on. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


@dataclass
class StopRequest:
    """Which signal asked for the end of the run, if one did."""

    signal: int | None = None
    twice: bool = False
    """It was asked for again, by somebody who does not want to wait."""

    def check(self) -> None:
        """Raises Stopped when the run was asked to stop: what is in hand can be done again."""
        if self.signal is not None:
            raise Stopped


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
        if request.signal is not None and number == signal.SIGINT:
            request.twice = True
            raise KeyboardInterrupt
        if request.signal is not None:
            return  # a group's SIGTERM may come from several sides
        request.signal = number

    # What is ignored (nohup) stays ignored.
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
