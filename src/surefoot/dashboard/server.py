"""The server of `surefoot ui`: pages, their scripts, and what they ask for. It reads run folders.

The routes are all here; who may use them is said in `guard`. Whatever stands in a run folder, the answer
is JSON: what cannot be read or drawn is said in words.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from surefoot.dashboard import pages, stream
from surefoot.dashboard.guard import LONGEST_TOKEN, SESSION, Access, Guard
from surefoot.dashboard.index import Index
from surefoot.dashboard.library import Entry, Library
from surefoot.dashboard.rows import Worst, row
from surefoot.errors import UserError
from surefoot.report.page import render
from surefoot.report.parcel import as_json
from surefoot.report.runs import load_slides, read_run

MOST_COMPARED = 64
SESSION_SECONDS = 30 * 24 * 3600

Answer = Callable[[Request], Awaitable[Response]]


def make_app(library: Library, access: Access) -> Starlette:
    """The ASGI application over these runs."""
    server = _Server(library, access)
    routes = [
        Route("/", server.shell),
        Route("/run/{run}", server.shell),
        Route("/compare", server.shell),
        Route("/assets/{name:path}", server.asset),
        Route(SESSION, server.session, methods=["POST"]),
        Route("/api/stream", server.list_stream),
        Route("/api/compare", server.compare),
        Route("/api/runs/{run}", server.run),
        Route("/api/runs/{run}/stream", server.run_stream),
        Route("/api/runs/{run}/curves", server.curves),
        Route("/api/runs/{run}/heat", server.heat),
        Route("/api/runs/{run}/layers/{layer:int}", server.layer),
        Route("/api/runs/{run}/worst", server.worst),
        Route("/api/runs/{run}/row", server.row),
        Route("/api/runs/{run}/slides/{step:int}", server.slide),
        Route("/api/runs/{run}/report", server.report),
        Route("/api/runs/{run}/open-next-step", server.open_next_step, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, access=access)])


@dataclass(frozen=True)
class _Asset:
    content: bytes
    kind: str
    tag: str


class _Server:
    def __init__(self, library: Library, access: Access) -> None:
        self.library, self.access = library, access
        self.assets = dict(_assets())
        self.worst_rows = Worst()

    # What is the same for everybody ------------------------------------------------------------------------

    async def shell(self, request: Request) -> Response:
        """The page, empty: its script looks at the address."""
        return self._file(request, "index.html")

    async def asset(self, request: Request) -> Response:
        """A script or a style; only those that were there at the start, by their whole name."""
        return self._file(request, request.path_params["name"])

    def _file(self, request: Request, name: str) -> Response:
        found = self.assets.get(name)
        if found is None:
            return _refused(404, "there is no such file")
        headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, headers=headers, media_type=found.kind)

    async def session(self, request: Request) -> Response:
        """The token for the session's cookie."""
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > 2 * LONGEST_TOKEN:
                return _refused(413, "that is no token")
        try:
            token = json.loads(body)["token"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return _refused(400, 'send {"token": ...} as JSON')
        if request.headers.get("content-type") != "application/json" or not isinstance(token, str):
            return _refused(400, 'send {"token": ...} as JSON')
        if not self.access.is_token(token):
            return _refused(401, "that is not this server's token: open the link that surefoot ui prints")
        answer = Response(status_code=204)
        answer.set_cookie(
            self.access.cookie,
            self.access.session,
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="strict",
        )
        return answer

    # Many runs ---------------------------------------------------------------------------------------------

    async def list_stream(self, request: Request) -> Response:
        """All runs, and what changes."""
        return _events(stream.of_list(self.library))

    async def compare(self, request: Request) -> Response:
        """?runs=ID,ID,...&axis=step|tokens|time: curves, options that differ, final losses."""
        ids = request.query_params.get("runs", "").split(",")[:MOST_COMPARED]
        axis = request.query_params.get("axis", "step")
        if axis not in pages.AXES:
            return _refused(400, f"axis: one of {', '.join(pages.AXES)}")

        def look() -> Any:
            entries = [entry for run in ids if (entry := self.library.entry(run)) is not None]
            found = [(entry, self.library.brief(entry)) for entry in entries]
            for _, index in found:
                index.grow()
            return pages.comparison(found, axis)

        return await _answer(look)

    # One run -----------------------------------------------------------------------------------------------

    async def run(self, request: Request) -> Response:
        """All that its page draws at first."""
        return await self._of(request, pages.run_page)

    async def run_stream(self, request: Request) -> Response:
        """?file=...&from=BYTE: what comes after. A browser that lost the stream names the byte itself."""
        entry = await to_thread.run_sync(self.library.entry, request.path_params["run"])
        if entry is None:
            return _refused(404, "there is no such run")
        told = request.headers.get("last-event-id") or request.query_params.get("from", "0")
        offset = int(told) if told.isdecimal() and len(told) < 19 else 0
        file = request.query_params.get("file", "")
        return _events(stream.of_run(entry, self.library.whole(entry), file, offset))

    async def curves(self, request: Request) -> Response:
        """?names=loss,...&low=STEP&high=STEP&buckets=N: columns between two steps, finer than on the whole page."""
        asked = request.query_params
        try:
            low, high = float(asked["low"]), float(asked["high"])
            names, buckets = asked["names"].split(","), max(10, int(asked.get("buckets", pages.BUCKETS)))
        except (KeyError, ValueError):
            return _refused(400, "names, low and high: columns and two steps")
        return await self._of(request, lambda _, index: pages.window(index, names, low, high, buckets))

    async def heat(self, request: Request) -> Response:
        """Layer × step."""
        return await self._of(request, lambda _, index: pages.heat_page(index))

    async def layer(self, request: Request) -> Response:
        """The tensors of one layer over time."""
        number = request.path_params["layer"]
        return await self._of(request, lambda _, index: pages.layer_page(index, number))

    async def worst(self, request: Request) -> Response:
        """The worst rows."""
        return await self._of(request, lambda entry, _: self.worst_rows.of(entry), grow=False)

    async def row(self, request: Request) -> Response:
        """?where=file:line: one row, to be read."""
        where = request.query_params.get("where", "")
        return await self._of(request, lambda entry, _: row(entry, where), grow=False)

    async def slide(self, request: Request) -> Response:
        """One opened step."""
        step = request.path_params["step"]
        return await self._of(request, lambda entry, _: pages.slide(entry, step), grow=False)

    async def report(self, request: Request) -> Response:
        """The run as one file, as `surefoot report` writes it, to be saved."""

        def whole(entry: Entry, _: Index) -> Response:
            found = read_run(entry.folder)
            page = render(load_slides(found)[0], found).encode()
            headers = {"Content-Disposition": 'attachment; filename="report.html"'}
            return Response(page, headers=headers, media_type="application/octet-stream")

        return await self._of(request, whole, grow=False)

    async def open_next_step(self, request: Request) -> Response:
        """Ask the run to open its next step: the one thing that is ever written."""
        return await self._of(request, lambda entry, index: {"done": pages.wish(entry, index)})

    async def _of(
        self, request: Request, look: Callable[[Entry, Index], Any], *, grow: bool = True
    ) -> Response:
        """The answer to a question about one run, looked up in a thread."""

        entry = await to_thread.run_sync(self.library.entry, request.path_params["run"])
        if entry is None:
            return _refused(404, "there is no such run")

        def ask() -> Any:
            index = self.library.whole(entry)
            if grow:
                index.grow()
            return look(entry, index)

        return await _answer(ask, entry.told)


async def _answer(ask: Callable[[], Any], told: Callable[[str], str] = str) -> Response:
    """What `ask` returns, as JSON made in its thread; what it cannot read or draw, in words, which `told` gives
    their last form."""

    def made() -> Response:
        found = ask()
        return found if isinstance(found, Response) else _json(found)

    try:
        return await to_thread.run_sync(made)
    except UserError as error:
        return _refused(422, told(str(error)))
    except pages.UNREADABLE as error:
        why = told(str(error))[:200]
        return _refused(422, f"what is in this run does not fit together: {type(error).__name__}: {why}")


def _refused(status: int, why: str) -> Response:
    return _json({"error": why}, status)


def _json(content: Any, status: int = 200) -> Response:
    # Half of a surrogate pair, as a tokenizer's piece may be, has no UTF-8; as an escape it is JSON.
    text = as_json(content).encode("utf-8", "backslashreplace")
    return Response(text, status, media_type="application/json")


def _events(messages: Any) -> Response:
    return StreamingResponse(messages, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _assets() -> Iterator[tuple[str, _Asset]]:
    """What is served: index.html, ui.css, js/ of the dashboard; the report's drawing under draw/."""
    for package, under in (("surefoot.dashboard", ""), ("surefoot.report", "draw/")):
        for name, file in _below(files(package) / "assets"):
            content = file.read_bytes()
            kind = mimetypes.guess_type(name)[0] or "text/plain"
            kind = "text/javascript" if name.endswith(".js") else kind
            yield under + name, _Asset(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _below(folder: Traversable, under: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{under}{entry.name}/")
        else:
            yield under + entry.name, entry
