"""Ctrl-C and SIGTERM: finish the step, save, say how to go on. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


@dataclass
class StopRequest:
    """Which signal asked for the end of the run, if one did."""

    signal: int | None = None


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and is saved."""

    def __init__(self, signal_number: int, step: int, folder: Path) -> None:
        super().__init__(f"stopped after step {step}; saved in {folder}")
        self.signal = signal_number
        self.step = step
        self.folder = folder


@contextmanager
def asked_to_stop() -> Iterator[StopRequest]:
    """While open, SIGINT and SIGTERM are noted instead of killing the step in hand."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python lets only the main thread set handlers
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
