"""Who may ask: the exchange of the token for a cookie, and what every answer has."""

from __future__ import annotations

import asyncio
import json
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from surefoot.dashboard.guard import Guard, access
from tests.dashboard.asking import HOST, PORT, TOKEN, Answer, Client, client

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer, whatever it is."""
JSON = ("Content-Type", "application/json")


def page(browser: Client) -> list[tuple[str, str]]:
    """Headers of a page that has no cookie yet."""
    return [("Host", HOST), ("Origin", f"http://{HOST}")]


def log_in(browser: Client, body: bytes, *more: tuple[str, str]) -> Answer:
    return browser.ask("/api/session", "POST", headers=[*page(browser), *(more or (JSON,))], body=body)


# The token for the cookie ------------------------------------------------------------------------------------


def test_the_token_is_exchanged_for_a_cookie_that_works(browser: Client) -> None:
    told = log_in(browser, json.dumps({"token": TOKEN}).encode())
    assert (told.status, told.body) == (204, b"")
    [header] = told.all("set-cookie")
    [(name, cookie)] = SimpleCookie(header).items()
    assert name == f"surefoot-ui-{PORT}"
    assert cookie["httponly"] is True and cookie["samesite"].lower() == "strict" and cookie["path"] == "/"
    assert cookie["domain"] == "" and TOKEN not in header
    sent = [*page(browser), ("Cookie", f"{name}={cookie.value}")]
    assert browser.ask("/api/compare", headers=sent).status == 200


def test_the_cookie_outlives_the_server_and_no_other_token(shown: Path, browser: Client) -> None:
    assert client(shown).ask("/api/compare", headers=browser.headers).status == 200
    assert client(shown, token="another" * 9).ask("/api/compare", headers=browser.headers).status == 401
    assert access(1, TOKEN).session == access(2, TOKEN).session  # the ports are told apart by the name
    assert access(1, TOKEN).cookie != access(2, TOKEN).cookie


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b"3", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"{}", 400),
        (b"[" * 2000, 400),
        (b'{"token": ' + b"9" * 1500 + b"}", 400),
        (b'{"token": null}', 400),
        (b'{"token": 3}', 400),
        (b'{"token": true}', 400),
        (b'{"token": ["x"]}', 400),
        (b'{"token": ""}', 401),
        (b'{"token": "wrong"}', 401),
        (json.dumps({"token": TOKEN[:-1]}).encode(), 401),
        (json.dumps({"token": TOKEN + "x"}).encode(), 401),
        (json.dumps({"token": f" {TOKEN}"}).encode(), 401),
        (json.dumps({"token": TOKEN.upper()}).encode(), 401),
        ('{"token": "Schlüssel ☃"}'.encode(), 401),
        (rb'{"token": "\ud800"}', 401),
        (rb'{"token": "\u0000"}', 401),
        (json.dumps({"token": TOKEN, "x": "x" * 4000}).encode(), 413),
        (b" " * 1_000_000, 413),
    ],
)
def test_what_is_not_the_token_opens_nothing(body: bytes, status: int, browser: Client) -> None:
    told = log_in(browser, body)
    assert told.status == status
    assert told.json["error"] and told.all("set-cookie") == []
    assert TOKEN.encode() not in told.body and browser.rights.session.encode() not in told.body


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_form_of_another_site_could_not_send_the_token(kind: str, browser: Client) -> None:
    body = json.dumps({"token": TOKEN}).encode()
    assert log_in(browser, body, ("Content-Type", kind)).status == 400
    assert log_in(browser, body, ("X-None", "")).status == 400


@pytest.mark.parametrize(
    "others", ['a={"x": 1}; {}', "a=b; {}", "{}; b", '{}; c="', "=; {}", "ü=ü; {}", "{};{}"]
)
def test_cookies_of_other_programs_do_not_shut_us_out(others: str, browser: Client) -> None:
    """Cookies belong to a host with all of its ports: what other servers of this machine set comes to us, too."""
    own = f"{browser.rights.cookie}={browser.rights.session}"
    sent = [*page(browser), ("Cookie", others.replace("{}", own))]
    assert browser.ask("/api/compare", headers=sent).status == 200


@pytest.mark.parametrize("value", ["", "ü", '"', "\\", "x; surefoot-ui-6116", "\x00", "0" * 60_000])
def test_odd_cookies_are_no_session(value: str, browser: Client) -> None:
    sent = [*page(browser), ("Cookie", f"{browser.rights.cookie}={value}")]
    assert browser.ask("/api/compare", headers=sent).status == 401


def test_names_by_which_the_server_may_be_asked() -> None:
    rights = access(80, TOKEN, ["Gpu.Example", "fd00::1"])
    assert {"gpu.example:80", "gpu.example", "[fd00::1]:80", "127.0.0.1"} <= rights.hosts
    assert "gpu.example" not in access(81, TOKEN, ["gpu.example"]).hosts
    assert access(81, TOKEN).hosts == {"127.0.0.1:81", "localhost:81", "[::1]:81"}


# What every answer has ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/api/nothing", "GET", 404),
        ("/API/compare", "GET", 404),
        ("/compare/", "GET", 307),
        ("/compare", "POST", 405),
        ("/api/session", "GET", 405),
        ("/api/runs/none", "GET", 404),
        ("/api/runs/none/stream", "GET", 404),
        ("/api/runs/none/open-next-step", "POST", 404),
        ("/api/compare?axis=x", "GET", 400),
        ("/api/runs/none/curves?names=loss&low=x&high=1", "GET", 400),
        ("/api/runs/none/layers/x", "GET", 404),
        ("/assets/none.js", "GET", 404),
    ],
)
def test_errors_have_the_same_headers(url: str, method: str, status: int, browser: Client) -> None:
    told = browser.ask(url, method)
    assert told.status == status
    for name, value in HEADERS.items():
        assert told.all(name) == [value], name
    assert told.all("cache-control") == ["no-store"]
    assert told.all("access-control-allow-origin") == []


def test_even_what_breaks_has_the_headers() -> None:
    async def broken(_: Request) -> Response:
        raise RuntimeError("told to nobody")

    rights = access(PORT, TOKEN)
    app = Starlette(routes=[Route("/", broken)], middleware=[Middleware(Guard, access=rights)])
    told: list[Answer] = []
    with pytest.raises(RuntimeError):  # for the server's log
        told.append(Client(app, rights).ask("/"))
    # ... but somebody asked, and has had an answer:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", HOST.encode())]}
    with pytest.raises(RuntimeError):
        asyncio.run(app(scope, receive, send))
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert start["status"] == 500 and headers["content-security-policy"] == POLICY
    assert b"told to nobody" not in body["body"]


def test_assets_are_asked_for_again_and_nothing_else_is_kept(browser: Client) -> None:
    first = browser.ask("/assets/index.html")
    [tag] = first.all("etag")
    assert first.all("cache-control") == ["no-cache"]
    again = browser.ask("/assets/index.html", headers=[*browser.headers, ("If-None-Match", tag)])
    assert (again.status, again.body) == (304, b"") and again.all("content-security-policy") == [POLICY]
    assert browser.ask("/api/compare").all("cache-control") == ["no-store"]


def test_there_are_no_websockets(browser: Client) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    own = [(name.lower().encode(), value.encode()) for name, value in browser.headers]
    for path in ("/", "/api/stream", "/api/nothing"):
        scope = {"type": "websocket", "path": path, "headers": own, "subprotocols": []}
        asyncio.run(browser.app(scope, receive, send))
    assert not any(message["type"] == "websocket.accept" for message in sent)
