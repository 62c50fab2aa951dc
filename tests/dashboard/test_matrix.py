"""Every route × method × Host × Origin × cookie × who the browser says asks: the answer is the one of a table here.

A new route fails until it is listed, with what it answers to whom it lets through.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from starlette.routing import Route

from tests.dashboard.asking import HOST, PORT, TOKEN, Answer, Client, client, exchange
from tests.dashboard.test_guard import HEADERS

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
READS = {"GET": 200, "HEAD": 200}
ROUTES: dict[str, tuple[str, dict[str, int]]] = {
    "/": ("/", READS),
    "/run/{run}": ("/run/RUN", READS),
    "/compare": ("/compare", READS),
    "/assets/{name:path}": ("/assets/index.html", READS),
    "/api/session": ("/api/session", {"POST": 400}),
    "/api/stream": ("/api/stream", READS),
    "/api/compare": ("/api/compare?runs=RUN", READS),
    "/api/runs/{run}": ("/api/runs/RUN", READS),
    "/api/runs/{run}/stream": ("/api/runs/RUN/stream?file=x&from=0", READS),
    "/api/runs/{run}/curves": ("/api/runs/RUN/curves?names=loss&low=1&high=5", READS),
    "/api/runs/{run}/heat": ("/api/runs/RUN/heat", READS),
    "/api/runs/{run}/layers/{layer:int}": ("/api/runs/RUN/layers/0", READS),
    "/api/runs/{run}/worst": ("/api/runs/RUN/worst", READS),
    "/api/runs/{run}/row": ("/api/runs/RUN/row?where=x:1", READS),
    "/api/runs/{run}/slides/{step:int}": ("/api/runs/RUN/slides/20", {"GET": 422, "HEAD": 422}),
    "/api/runs/{run}/report": ("/api/runs/RUN/report", READS),
    "/api/runs/{run}/open-next-step": ("/api/runs/RUN/open-next-step", {"POST": 422}),
}
"""Route → an address of it, and what is answered to each method when it is let through; 405 to the others."""

RIGHT_HOSTS = {"right": [HOST], "localhost": [f"localhost:{PORT}"], "upper case": [f"LOCALHOST:{PORT}"]}
WRONG_HOSTS = {
    "missing": [],
    "another name": [f"evil.example:{PORT}"],
    "another port": [f"127.0.0.1:{PORT + 1}"],
    "two": [HOST, HOST],
    "no port": ["127.0.0.1"],
}
RIGHT_ORIGINS = {"absent": [], "right": [f"http://{HOST}"]}
WRONG_ORIGINS = {
    "another site": ["http://evil.example"],
    "null": ["null"],
    "ours, encrypted": [f"https://{HOST}"],
    "two": [f"http://{HOST}", "http://evil.example"],
}
WRONG_COOKIES = {
    "none": [],
    "another value": [f"surefoot-ui-{PORT}=" + "0" * 64],
    "of another port": [f"surefoot-ui-{PORT + 1}=SESSION"],
    "the token itself": [f"surefoot-ui-{PORT}={TOKEN}"],
}
RIGHT_COOKIES = {"right": [f"surefoot-ui-{PORT}=SESSION"]}
RIGHT_SITES = {"absent": [], "same origin": ["same-origin"]}
WRONG_SITES = {"another site": ["cross-site"]}
Value = tuple[str, list[str]]


def expected(path: str, methods: dict[str, int], method: str, names: tuple[str, str, str, str]) -> int:
    """What is answered, told once more: whoever may not ask is told so before anything is looked up."""
    host, origin, cookie, site = names
    if host not in RIGHT_HOSTS:
        return 421
    if origin not in RIGHT_ORIGINS:
        return 403
    api = path.startswith("/api")
    if api and site not in RIGHT_SITES:
        return 403
    if method not in ("GET", "HEAD") and origin != "right":
        return 403
    if api and path != "/api/session" and cookie not in RIGHT_COOKIES:
        return 401
    return methods.get(method, 405)


def test_every_route_is_listed(browser: Client) -> None:
    found = {}
    for route in browser.app.routes:
        assert isinstance(route, Route)
        found[route.path] = route.methods
    listed = {path: set(methods) for path, (_, methods) in ROUTES.items()}
    assert found == listed, "list the new route in ROUTES, and what it answers"


def check(told: Answer, status: int, case: object) -> None:
    assert told.status == status, (case, told)
    for name, value in HEADERS.items():
        assert told.all(name) == [value], (case, name)
    if status in (401, 403, 421):
        assert set(told.json) == {"error"} and "set-cookie" not in dict(told.headers), case


def test_every_route_by_whom_it_is_asked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    names = '{"tensors": ["a.weight"]}'
    (run / "run.json").write_text(names)
    (run / "events.jsonl").write_text('{"type": "step", "step": 1, "loss": 2.0}\n')
    browser = client(tmp_path)
    [entry] = browser.library.look()
    before = {path: path.read_bytes() for path in run.iterdir()}

    async def all_cases() -> int:
        count = 0
        values = itertools.product(
            (RIGHT_HOSTS | WRONG_HOSTS).items(),
            (RIGHT_ORIGINS | WRONG_ORIGINS).items(),
            (RIGHT_COOKIES | WRONG_COOKIES).items(),
            (RIGHT_SITES | WRONG_SITES).items(),
        )
        for host, origin, cookie, site in values:
            sent = [
                *(("Host", value) for value in host[1]),
                *(("Origin", value) for value in origin[1]),
                *(("Cookie", value.replace("SESSION", browser.rights.session)) for value in cookie[1]),
                *(("Sec-Fetch-Site", value) for value in site[1]),
            ]
            for path, (url, methods) in ROUTES.items():
                for method in METHODS:
                    case = (path, method, host[0], origin[0], cookie[0], site[0])
                    told = await exchange(
                        browser.app,
                        url.replace("RUN", entry.id),
                        method,
                        sent,
                        enough=lambda came: bool(came),
                    )
                    status = expected(path, methods, method, (host[0], origin[0], cookie[0], site[0]))
                    check(told, status, case)
                    count += 1
        return count

    assert asyncio.run(all_cases()) == len(ROUTES) * len(METHODS) * 8 * 6 * 5 * 3
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_what_the_browser_says_of_who_asks(browser: Client) -> None:
    for site, status in (
        ("none", 200),
        ("same-origin", 200),
        ("same-site", 403),
        ("cross-site", 403),
        ("", 403),
    ):
        sent = [*browser.headers, ("Sec-Fetch-Site", site)]
        assert browser.ask("/api/compare", headers=sent).status == status, site
        # A link somewhere else may lead to the page, which is empty.
        assert browser.ask("/", headers=sent).status == 200


def test_methods_nobody_has_heard_of(browser: Client) -> None:
    for method in ("TRACE", "CONNECT", "PROPFIND", "get", "QUERY"):
        for url in ("/", "/api/compare", "/api/session"):
            check(browser.ask(url, method), 405, (method, url))
