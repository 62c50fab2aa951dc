"""surefoot ui: where it listens, what it refuses to do, and the whole of it once through a socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from surefoot.commands import ui
from surefoot.errors import UserError
from tests.conftest import Surefoot

CHOSEN = "a+b/c=d&e f" + "x" * 40
"""A token that means something in a link."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(ui.TOKEN, raising=False)
    monkeypatch.delenv(ui.PARENT, raising=False)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.0.2.1", "gpu.example", "localhost.example", "[::1]"]
)
@pytest.mark.parametrize(("expose", "token"), [(False, None), (True, None), (False, "x" * 43)])
def test_others_are_let_in_on_purpose_or_not_at_all(
    host: str, expose: bool, token: str | None, surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listen(_: ui.UiOptions) -> socket.socket:
        raise AssertionError("it must not listen")

    monkeypatch.setattr(ui, "_listen", listen)
    if token:
        monkeypatch.setenv(ui.TOKEN, token)
    found = surefoot("ui", ".", f"--host={host}", "--port", 0, *(["--expose"] if expose else []))
    assert (found.status, found.out) == (2, "")
    assert "--expose" in found.err and ui.TOKEN in found.err and "ssh -L" in found.err


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "too short"),
        ("x" * 42, "42 characters, at least 43"),
        ("x" * 1025, "at most"),
        ("ü" * 50, "ASCII"),
    ],
)
@pytest.mark.parametrize("exposed", [[], ["--host", "0.0.0.0", "--expose"]])
def test_a_token_that_is_none_is_refused(
    token: str, says: str, exposed: list[str], surefoot: Surefoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ui.TOKEN, token)
    found = surefoot("ui", ".", "--port", 0, *exposed)
    assert (found.status, found.out) == (2, "") and says in found.err
    assert not token or token not in found.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "nowhere: not a folder"),
        ([".", "--port", "70000"], "port"),
        ([".", "--port", "-1"], "port"),
        ([".", "--port", "x"], "port"),
        ([".", "--prot", "1"], "Did you mean 'port'?"),
    ],
)
def test_what_cannot_be_is_said(argv: list[str], says: str, surefoot: Surefoot) -> None:
    found = surefoot("ui", *argv)
    assert (found.status, found.out) == (2, "")
    assert says in found.err and len(found.err.splitlines()) == 1


def test_a_port_in_use_is_said(taken: int, surefoot: Surefoot) -> None:
    found = surefoot("ui", ".", "--port", taken)
    assert (found.status, found.out) == (2, "")
    assert f"--port {taken}: cannot listen at 127.0.0.1 (Address already in use)" in found.err
    assert "Name another port, or 0 for any" in found.err


# Where it listens --------------------------------------------------------------------------------------------


def test_where_none_was_named_the_next_port_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "PORT", taken)
    with ui._listen(ui.UiOptions(port=None)) as listener:
        host, port = listener.getsockname()
        assert host == "127.0.0.1" and taken < port < taken + ui.NEXT_PORTS
    monkeypatch.setattr(ui, "NEXT_PORTS", 1)
    with pytest.raises(UserError, match=f"--port {taken}: cannot listen"):
        ui._listen(ui.UiOptions(port=None))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_only_this_machine_is_listened_to(host: str) -> None:
    with ui._listen(ui.UiOptions(host=host, port=0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


class Served:
    """A server in a process of its own."""

    def __init__(self, place: Path, *argv: str, **env: str) -> None:
        command = [sys.executable, "-m", "surefoot", "ui", "--port", "0", "--json", *argv]
        self.process = subprocess.Popen(
            command, cwd=place, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        told = json.loads(self.process.stdout.readline())
        assert told["pid"] == self.process.pid
        self.link = urlsplit(told["url"])
        assert self.link.port is not None and self.link.fragment.startswith("token=")
        self.port, self.token = self.link.port, unquote(self.link.fragment.removeprefix("token="))

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {"Host": f"127.0.0.1:{self.port}", **{key.replace("_", "-"): v for key, v in headers.items()}}
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def sockets(self) -> set[str]:
        """Local addresses of all its sockets that listen, as the kernel writes them."""
        handles = Path(f"/proc/{self.process.pid}/fd")
        inodes = set()
        for handle in handles.iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                inodes.add(str(handle.readlink()))
        found = set()
        for kind in ("tcp", "tcp6", "udp", "udp6"):
            path = Path("/proc/net", kind)
            for line in path.read_text().splitlines()[1:] if path.exists() else []:
                words = line.split()
                if f"socket:[{words[9]}]" in inodes and (words[3] == "0A" or kind.startswith("udp")):
                    found.add(words[1])
        return found

    def end(self) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(20)
        self.process.stdin.close()
        self.process.stdout.close()
        return status


def test_the_whole_of_it(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "events.jsonl").write_text('{"type": "step", "step": 1, "loss": 2.0}\n')
    served = Served(tmp_path, **{ui.TOKEN: CHOSEN})
    try:
        port, own = served.port, f"http://127.0.0.1:{served.port}"
        assert (served.link.scheme, served.link.hostname, served.token) == ("http", "127.0.0.1", CHOSEN)
        if Path("/proc/net/tcp").exists():
            assert served.sockets() == {f"0100007F:{port:04X}"}
        answer, _ = served.ask("GET", "/")
        assert answer.status == 200 and answer.headers["Content-Security-Policy"].startswith(
            "default-src 'none'"
        )
        assert answer.headers["Server"] is None
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
            assert served.ask("GET", "/", Host=host)[0].status == 421
        assert served.ask("GET", "/assets/%2e%2e/%2e%2e/guard.py")[0].status == 404
        assert served.ask("GET", "/assets/../../guard.py")[0].status == 404
        assert served.ask("GET", "/api/compare")[0].status == 401
        told = json.dumps({"token": served.token})
        kind = {"Content_Type": "application/json"}
        assert served.ask("POST", "/api/session", told, **kind)[0].status == 403
        assert served.ask("POST", "/api/session", told, Origin="http://evil.example", **kind)[0].status == 403
        answer, body = served.ask("POST", "/api/session", told, Origin=own, **kind)
        assert (answer.status, body) == (204, b"")
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        answer, body = served.ask("GET", "/api/compare?runs=none", Cookie=cookie)
        assert answer.status == 200 and json.loads(body)["runs"] == []
        asked = {"Sec_WebSocket_Version": "13", "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        answer, _ = served.ask("GET", "/", Upgrade="websocket", Connection="Upgrade", Cookie=cookie, **asked)
        assert answer.status != 101
    finally:
        status = served.end()
    assert status == 0


def test_a_server_of_a_run_ends_with_it_and_its_link_stays_right(tmp_path: Path) -> None:
    served = Served(tmp_path, **{ui.PARENT: "1"})
    token = served.token
    assert (tmp_path / "state" / "surefoot" / "ui-token").read_text() == token
    assert served.process.stdin is not None
    time.sleep(0.1)
    assert served.process.poll() is None
    served.process.stdin.close()
    assert served.process.wait(20) == 0
    assert served.end() == 0
