"""Asking the application as a server does, without sockets: one request, or a stream until it has said enough."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.types import Message

from surefoot.dashboard.guard import Access, access
from surefoot.dashboard.library import Library
from surefoot.dashboard.server import make_app

TOKEN = "t0ken-" + "x" * 43
PORT = 6116
HOST = f"127.0.0.1:{PORT}"
Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name.lower()]

    @property
    def json(self) -> Any:
        """The body."""
        assert self.all("content-type") == ["application/json"], self
        return json.loads(self.body, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


async def exchange(
    app: Any,
    url: str,
    method: str = "GET",
    headers: Headers = (),
    body: bytes = b"",
    enough: Callable[[bytes], bool] = lambda _: False,
) -> Answer:
    """One request; the asker goes away when what has come of the answer is `enough`."""
    path, _, query = url.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "server": ("127.0.0.1", PORT),
        "client": ("127.0.0.1", 50_000),
    }
    began: list[Message] = []
    parts: list[bytes] = []
    sent, gone = False, asyncio.Event()

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            began.append(message)
        else:
            parts.append(message.get("body", b""))
        if enough(b"".join(parts)) or not message.get("more_body", True):
            gone.set()

    await app(scope, receive, send)
    [start] = began
    told = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return Answer(start["status"], told, b"".join(parts))


@dataclass(frozen=True)
class Client:
    """A browser that has the session's cookie."""

    app: Starlette
    rights: Access

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What its requests have."""
        return [
            ("Host", HOST),
            ("Origin", f"http://{HOST}"),
            ("Cookie", f"{self.rights.cookie}={self.rights.session}"),
        ]

    def ask(self, url: str, method: str = "GET", **more: Any) -> Answer:
        """One request."""
        return asyncio.run(exchange(self.app, url, method, **{"headers": self.headers, **more}))

    def json(self, url: str) -> Any:
        """The answer that is expected."""
        found = self.ask(url)
        assert found.status == 200, found
        return found.json

    @property
    def library(self) -> Library:
        """The runs that it is shown."""
        return next(route.endpoint.__self__.library for route in self.app.routes)  # pyright: ignore[reportAttributeAccessIssue]


def client(*folders: Any, token: str = TOKEN) -> Client:
    """The application over these folders, and who may ask it."""
    rights = access(PORT, token)
    return Client(make_app(Library(folders, rights.secret), rights), rights)
