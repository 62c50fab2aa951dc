"""What a request can reach: no file but those that are served, no run but by its id, one file to write; and the
token that is kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from starlette.routing import Route

from surefoot.dashboard.guard import kept_token
from surefoot.runfolder import RunFolder
from tests.dashboard.asking import HOST, Answer, Client, client

# Paths -------------------------------------------------------------------------------------------------------

UP = [
    "..",
    "%2e%2e",
    "..%2f..",
    "%2e%2e%2f",
    "..%5c",
    "....//",
    "%00",
    "a%00",
    "/",
    "%2f",
    "%252e%252e",
    "~",
    "",
]
TARGETS = [
    "etc/passwd",
    "etc%2fpasswd",
    "guard.py",
    "server.py",
    "index.html%00.js",
    "__init__.py",
    "index.html/",
]


@pytest.mark.parametrize("up", UP)
def test_assets_are_those_of_the_list_alone(up: str, browser: Client) -> None:
    for target in TARGETS:
        for url in (f"/assets/{up}/{target}", f"/assets/js/{up}/{target}", f"/assets/{up}{target}"):
            assert browser.ask(url).status in (404, 307), url


@pytest.mark.parametrize("up", UP)
def test_a_run_is_an_id_and_no_path(up: str, browser: Client, shown: Path) -> None:
    whole = str(shown / "capitals").replace("/", "%2f")
    for run in (up, f"{up}%2fcapitals", "capitals", whole, f"{up}{whole}"):
        for rest in ("", "/heat", "/slides/20", "/report", "/worst", "/stream"):
            told = browser.ask(f"/api/runs/{run}{rest}") if run else None
            if told is not None and told.status == 307:  # only a slash less at the end
                assert re.match(rf"http://{HOST}/api/runs/", told.all("location")[0])
            else:
                assert told is None or told.status == 404, (run, rest)


def test_no_answer_tells_where_a_run_is(browser: Client, shown: Path) -> None:
    """But for what its own run.json says, which has output_dir."""
    [entry] = browser.library.look()
    assert re.fullmatch("[0-9a-f]{20}", entry.id) and entry.name == "capitals"
    urls = ["", "/heat", "/layers/3", "/worst", "/row?where=x:1", "/slides/20"]
    bodies = [browser.ask(f"/api/runs/{entry.id}{url}").body for url in urls]
    bodies += [browser.ask(f"/api/runs/{entry.id}/{url}").body for url in ("slides/9", "layers/999")]
    bodies += [browser.ask(f"/api/compare?runs={entry.id}").body]
    bodies += [
        browser.ask(url, enough=lambda came: len(came) > 100).body
        for url in ("/api/stream", f"/api/runs/{entry.id}/stream?file=x")
    ]
    own = json.dumps({"output_dir": str(entry.folder)})[1:-1].encode()
    for body in bodies:
        told = body.replace(own, b"").replace(own.replace(b": ", b":"), b"")
        assert str(shown).encode() not in told, told[:500]


# The token that is kept --------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "surefoot" / "ui-token"


def test_the_token_is_kept_for_its_owner_alone(kept: Path) -> None:
    before = os.umask(0)
    try:
        token = kept_token()
    finally:
        os.umask(before)
    assert len(token) >= 43 and kept.read_text() == token
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
    assert kept_token() == token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644])
def test_a_token_that_others_could_read_or_write_is_replaced(mode: int, kept: Path) -> None:
    token = kept_token()
    kept.chmod(mode)
    fresh = kept_token()
    assert fresh != token and kept.read_text() == fresh and kept.stat().st_mode & 0o777 == 0o600


def test_a_token_behind_a_link_is_not_used_and_not_written(kept: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("their-token" * 9)
    theirs.chmod(0o600)
    kept.parent.mkdir(parents=True)
    kept.symlink_to(theirs)
    token = kept_token()
    assert token != theirs.read_text() == "their-token" * 9
    assert not kept.is_symlink() and kept.read_text() == token


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 50, b"x" * 5000])
def test_a_token_that_is_none_is_replaced(content: bytes, kept: Path) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(content)
    kept.chmod(0o600)
    token = kept_token()
    assert len(token) >= 43 and kept_token() == token


def test_where_nothing_can_be_kept_there_is_a_token_all_the_same(kept: Path) -> None:
    kept.parent.parent.write_text("no folder")
    first, second = kept_token(), kept_token()
    assert first != second and min(len(first), len(second)) >= 43
    kept.parent.parent.unlink()
    kept.mkdir(parents=True)
    assert len(kept_token()) >= 43 and kept.is_dir()


# The one thing that is written -------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (
            path.readlink()
            if path.is_symlink()
            else path.is_dir() or hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in folder.rglob("*")
    }


def allowed(folder: Path, *, by: object = True, live: bool = True) -> Client:
    """A run that may be asked for its next step, in training if `live`."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"slides_from_ui": by}, "total_steps": 9}))
    end = '{"type": "end", "step": 1, "reason": "finished"}\n'
    step = '{"type": "step", "step": 1, "loss": 1.0}\n'
    (folder / "events.jsonl").write_text(step if live else step + end)
    return client(folder)


def wish(browser: Client) -> Answer:
    [entry] = browser.library.look()
    return browser.ask(f"/api/runs/{entry.id}/open-next-step", "POST")


def test_the_next_step_is_asked_for(tmp_path: Path) -> None:
    browser = allowed(tmp_path / "run")
    with RunFolder(tmp_path / "run").locked():
        before = listing(tmp_path)
        first, second = wish(browser), wish(browser)
    assert (first.status, second.status) == (200, 200)
    assert "already" not in first.json["done"] and "already" in second.json["done"]
    assert listing(tmp_path) == before | {"run/open-next-step": hashlib.sha256(b"").hexdigest()}


@pytest.mark.parametrize("by", [False, None, 1, "true", [True], {}])
def test_only_a_run_that_allows_it_is_asked(by: object, tmp_path: Path) -> None:
    browser = allowed(tmp_path / "run", by=by)
    with RunFolder(tmp_path / "run").locked():
        before = listing(tmp_path)
        told = wish(browser)
    assert told.status == 422 and "slides_from_ui: true" in told.json["error"]
    assert listing(tmp_path) == before


def test_a_run_that_does_not_train_is_not_asked(tmp_path: Path) -> None:
    browser = allowed(tmp_path / "run", live=False)
    before = listing(tmp_path)
    told = wish(browser)
    assert told.status == 422 and "does not train" in told.json["error"]
    assert listing(tmp_path) == before


def test_nothing_is_made_behind_a_link(tmp_path: Path) -> None:
    browser = allowed(tmp_path / "run")
    (tmp_path / "run" / "open-next-step").symlink_to(tmp_path / "elsewhere")
    with RunFolder(tmp_path / "run").locked():
        before = listing(tmp_path)
        wish(browser)
    assert listing(tmp_path) == before


def test_reading_writes_nothing(browser: Client, shown: Path) -> None:
    before = listing(shown)
    [entry] = browser.library.look()
    for route in browser.app.routes:
        assert isinstance(route, Route)
        url = route.path.replace("{run}", entry.id).replace("{layer:int}", "1").replace("{step:int}", "20")
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
            browser.ask(url, method, enough=lambda came: len(came) > 50)
    assert listing(shown) == before
