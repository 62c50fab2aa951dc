"""Nothing here may wait for ever: a pipe that is opened for reading would."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

SECONDS = 120


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    def fail(*_: object) -> None:
        raise AssertionError(f"still waiting after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
