"""surefoot ui in a browser: the way in, the list of runs, and the one thing that a page can ask of a run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from surefoot.runfolder import RunFolder
from tests.browser.serving import card, names, run_id, until
from tests.dashboard import real

if TYPE_CHECKING:
    from tests.browser.conftest import Open, Serve


def make(folder: Path, steps: int, ended: str | None = "finished", **more: Any) -> Path:
    """A run whose run.json has these options besides."""
    run = real.run(folder, steps, total=50, ended=ended)
    options = {"learning_rate": 1e-4, "slides_from_ui": False, **more}
    real.config(run, 50, config=options, model={"name": "tiny", "parameters": 1234})
    return folder


@contextmanager
def training(folder: Path) -> Iterator[None]:
    """This process holds the run, as its trainer would."""
    with RunFolder(folder).locked():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("list")
    make(top / "alpha", 20, learning_rate=1e-3, tags=["first"])
    make(top / "beta", 50, learning_rate=2e-5)
    make(top / "gamma", 10, ended="interrupted", tags=["odd one"])
    return top


def test_the_link_lets_in_and_leaves_no_key(visit: Open, serve: Serve, runs: Path) -> None:
    server = serve(runs)
    page = visit(server)
    until(page, lambda: len(names(page)) == 3)
    assert page.url == f"{server.origin}/"
    assert page.evaluate("document.cookie") == ""
    (cookie,) = page.context.cookies()
    assert cookie.get("httpOnly") and cookie.get("sameSite") == "Strict"
    assert cookie.get("value") != server.link.partition("token=")[2]
    kept = page.evaluate("JSON.stringify([Object.entries(localStorage), Object.entries(sessionStorage)])")
    assert kept == "[[],[]]"
    page.reload()
    until(page, lambda: len(names(page)) == 3)


@pytest.mark.parametrize("path", ["/", "/compare?runs=a,b", "/run/none"])
def test_without_the_link_there_is_only_a_word(visit: Open, serve: Serve, runs: Path, path: str) -> None:
    page = visit(serve(runs), path, key=False, allowed=("401",))
    page.get_by_role("heading", name="This page needs its key").wait_for()
    assert page.locator("article, canvas, table").count() == 0
    assert "alpha" not in page.content()


def test_a_wrong_key_is_refused(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs), f"/#token={'x' * 43}", key=False, allowed=("401",))
    page.get_by_role("heading", name="This page needs its key").wait_for()
    assert page.url.endswith("/") and page.context.cookies() == []


def test_a_run_that_is_not_there(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs), "/run/0123456789abcdef0123", allowed=("404",))
    page.get_by_role("heading", name="This cannot be shown").wait_for()


def test_runs_are_found_and_sorted(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs))
    until(page, lambda: len(names(page)) == 3)
    page.locator("#sort").select_option("name")
    assert names(page) == ["alpha", "beta", "gamma"]
    page.locator("#sort").select_option("best")
    assert names(page) == ["beta", "alpha", "gamma"], "the loss falls as 2.5 / step"
    page.locator("#sort").select_option("learning_rate")
    assert names(page)[0] == "beta" and names(page)[-1] == "alpha"
    chips = card(page, "alpha").locator(".chip")
    assert chips.all_inner_texts()[0] == "first"
    assert "learning_rate 0.001" in chips.all_inner_texts()
    assert "tiny" in chips.all_inner_texts()
    assert not any("slides_from_ui" in text for text in chips.all_inner_texts()), "the same in all runs"
    facts = card(page, "beta").locator("dd").all_inner_texts()
    assert facts[0] == "50 of 50" and facts[1] == "0.05"
    line = card(page, "beta").locator("svg.spark polyline").get_attribute("points")
    assert line and len(line.split()) > 20
    for word, found in (("odd", ["gamma"]), ("TINY", ["alpha", "beta", "gamma"]), ("2e-05", ["beta"])):
        page.locator("#find").fill(word)
        assert sorted(names(page)) == found, word
    page.locator("#find").fill("nothing like this")
    assert names(page) == [] and "No run is like that" in page.locator("main").inner_text()
    page.locator("#find").fill("")
    states = page.get_by_role("group", name="Show only runs that are")
    assert states.get_by_role("button").all_inner_texts() == ["Finished", "Interrupted"]
    states.get_by_role("button", name="Interrupted").click()
    assert names(page) == ["gamma"]
    states.get_by_role("button", name="Finished").click()
    assert len(names(page)) == 3


def test_keys_choose_two_runs_and_compare_them(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs))
    until(page, lambda: len(names(page)) == 3)
    page.locator("#sort").select_option("name")
    page.locator("#sort").blur()
    page.keyboard.press("?")
    assert page.locator("dialog tr").count() >= 8
    page.keyboard.press("Escape")
    until(page, lambda: page.locator("dialog").count() == 0)
    page.keyboard.press("/")
    page.keyboard.type("jxc")
    assert page.locator("#find").input_value() == "jxc", "keys are letters while one types"
    page.keyboard.press("Escape")
    assert len(names(page)) == 3
    focused = "document.activeElement.textContent"
    for key, at in (("j", "alpha"), ("j", "beta"), ("k", "alpha"), ("k", "alpha")):
        page.keyboard.press(key)
        assert page.evaluate(focused) == at
    page.keyboard.press("x")
    assert page.locator("#compare").is_hidden()
    page.keyboard.press("c")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    assert page.locator("#compare").inner_text() == "Compare 2 runs"
    wanted = ",".join(run_id(page, name) for name in ("alpha", "gamma"))
    page.keyboard.press("c")
    page.locator("#curves canvas").wait_for()
    assert page.url.endswith(f"/compare?runs={wanted}")
    assert page.locator("h1").inner_text() == "alpha, gamma"


def test_the_theme_is_remembered(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs))
    until(page, lambda: len(names(page)) == 3)
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) is None
    page.keyboard.press("t")
    until(page, lambda: page.evaluate(theme) == "light")
    page.reload()
    until(page, lambda: len(names(page)) == 3)
    assert page.evaluate(theme) == "light"


def test_runs_come_and_go_by_themselves(visit: Open, serve: Serve, runs: Path) -> None:
    page = visit(serve(runs))
    until(page, lambda: len(names(page)) == 3)
    card(page, "alpha").locator("input").check()
    make(runs / "deep" / "delta", 5, ended=None)
    with training(runs / "deep" / "delta"):
        until(page, lambda: "deep/delta" in names(page), 12)
        badge = card(page, "deep/delta").locator(".badge")
        until(page, lambda: badge.inner_text() == "Training")
        card(page, "deep/delta").locator("input").check()
        assert page.locator("#compare").inner_text() == "Compare 2 runs"
        made = RunFolder(runs / "deep" / "delta")
        made.append(real.step(6))
        until(page, lambda: card(page, "deep/delta").locator("dd").first.inner_text() == "6 of 50", 5)
    until(page, lambda: badge.inner_text() == "Stopped")
    assert card(page, "deep/delta").locator("input").is_checked(), "a card that changes is the same card"
    shutil.rmtree(runs / "deep")
    until(page, lambda: "deep/delta" not in names(page), 12)
    assert page.locator("#compare").is_hidden()
    assert len(names(page)) == 3


def test_the_next_step_is_asked_for_only_where_it_may_be(visit: Open, serve: Serve, tmp_path: Path) -> None:
    make(tmp_path / "may", 5, ended=None, slides_from_ui=True)
    make(tmp_path / "may not", 5, ended=None)
    make(tmp_path / "is over", 5, slides_from_ui=True)
    server = serve(tmp_path)
    with training(tmp_path / "may"), training(tmp_path / "may not"):
        page = visit(server)
        until(page, lambda: len(names(page)) == 3)
        ids = {name: run_id(page, name) for name in names(page)}
        for name in ("may not", "is over"):
            page.goto(f"{server.origin}/run/{ids[name]}")
            page.locator("#slides").wait_for()
            assert page.locator("#open-next").is_hidden(), name
            assert not (tmp_path / name / "open-next-step").exists()
            told = page.locator("#slides").inner_text()
            assert ("--slides_from_ui" in told) == (name == "may not")
        page.goto(f"{server.origin}/run/{ids['may']}")
        page.locator("#open-next").click()
        page.get_by_text("The next step will be opened.").wait_for()
        assert RunFolder(tmp_path / "may").asked_file.exists()
        page.keyboard.press("o")
        page.get_by_text("has been asked for already").wait_for()
    page.locator("#open-next").wait_for(state="hidden")
    assert json.loads((tmp_path / "may" / "run.json").read_text())["config"]["slides_from_ui"] is True
    assert re.match("stopped", page.locator(".badge").first.inner_text(), re.IGNORECASE)
