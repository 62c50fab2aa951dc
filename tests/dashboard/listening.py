"""A page that listens to the application."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Self

from tests.dashboard.asking import Client, exchange

SOON = 5.0
"""Seconds within which a page is told, on a machine that does much besides."""


class Listener:
    """A page that listens: what it has been told, in order."""

    def __init__(self, browser: Client, url: str, *more: tuple[str, str]) -> None:
        self.browser, self.url, self.more = browser, url, more
        self.came = b""
        self.left = False

    async def __aenter__(self) -> Self:
        def enough(came: bytes) -> bool:
            self.came = came
            return self.left

        sent = [*self.browser.headers, *self.more]
        self.task = asyncio.ensure_future(exchange(self.browser.app, self.url, "GET", sent, enough=enough))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def told(self) -> list[tuple[str, int | None, Any]]:
        """(event, id, content) of each whole message."""
        found = []
        for block in self.came.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            if "event" in fields:
                number = int(fields["id"]) if "id" in fields else None
                found.append((fields["event"], number, json.loads(fields["data"])))
        return found

    def of(self, event: str) -> list[Any]:
        """The contents of these messages."""
        return [content for name, _, content in self.told if name == event]

    async def until(self, done: Callable[[], object], within: float = SOON) -> None:
        """Listen until it is so."""
        deadline = time.monotonic() + within
        while not done():
            assert time.monotonic() < deadline, f"not told in time; so far: {self.came[-2000:]!r}"
            assert not self.task.done() or done(), self.came
            await asyncio.sleep(0.01)

    async def ended(self) -> None:
        """The server has nothing more to say."""
        await asyncio.wait_for(self.task, SOON)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))
