"""A browser without network, and what it is shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from surefoot.microscope.slide import Opened
from surefoot.report.page import render
from surefoot.report.runs import load_slides, read_run
from tests.browser.serving import Served
from tests.report import samples

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

Open = Callable[..., "Page"]
Serve = Callable[[Path], Served]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a page's text from disk. At the end: nothing but that file was asked for, and nothing went wrong."""
    asked: list[str] = []
    wrong: list[str] = []
    contexts = []

    def opened(text: str, *, scheme: Any = "light", width: int = 1280) -> Page:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector("#page .panel")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
    assert asked and all(url == (tmp_path / "report.html").as_uri() for url in asked)


@pytest.fixture(scope="module")
def slide() -> Opened:
    return samples.full()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = samples.run_folder(tmp_path_factory.mktemp("runs") / "caps")
    run = read_run(samples.with_slides(folder, samples.full(100), samples.full(120)))
    return render(load_slides(run)[0], run)


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts `surefoot ui` over a folder; one server a folder."""
    home, started = tmp_path_factory.mktemp("home"), dict[Path, Served]()

    def served(folder: Path) -> Served:
        if folder not in started:
            started[folder] = Served(folder, home)
        return started[folder]

    yield served
    for one in started.values():
        one.stop()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens a page of a server, by its link. At the end: only that server was asked, and nothing went wrong; a
    message of the console is let pass only if it has one of the `allowed` words."""
    asked: list[tuple[str, str]] = []
    wrong: list[str] = []
    contexts = []

    def opened(
        server: Served,
        path: str = "/",
        *,
        key: bool = True,
        width: int = 1280,
        scheme: Any = "light",
        allowed: tuple[str, ...] = (),
    ) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)

        def heard(text: str) -> None:
            if not any(word in text for word in allowed):
                wrong.append(text)

        page.on("request", lambda request: asked.append((server.origin, request.url)))
        page.on("console", lambda message: heard(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(server.at(path) if key else server.origin + path)
        page.wait_for_selector("#page main")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []
    assert asked
    assert [
        url for origin, url in asked if not url.startswith((f"{origin}/", f"blob:{origin}/", "data:"))
    ] == []
