"""`surefoot ui` served, and looked at through Chromium; what both take. Linux only."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DRAWN = """() => { const c = document.querySelector("#curves canvas");
  return c && c.width && c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v); }"""
WATCH = """() => { window.seen = {}; const look = () => {
    const told = document.querySelector("#run .tiles dd"), step = told && told.textContent.split(" of ")[0];
    if (step && !(step in seen)) seen[step] = Date.now() / 1000; };
  new MutationObserver(look).observe(document.querySelector("#page"), {childList: true, subtree: true}); }"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """The link to a server over this folder, and its process."""
    environment = {**os.environ, "SUREFOOT_UI_TOKEN": secrets.token_urlsafe(32)}
    command = [sys.executable, "-m", "surefoot", "ui", str(folder), "--json", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            yield told["url"], told["pid"]
        finally:
            server.kill()


@contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


def opened(browser: Browser, link: str, path: str = "/") -> Page:
    """A page of its own context (a browser has six lines to a server for all of its pages), not waited for."""
    page = browser.new_context(bypass_csp=True, viewport={"width": 1280, "height": 900}).new_page()
    page.set_default_timeout(180_000)
    page.goto(link.replace("/#", f"{path}#"), wait_until="commit")
    return page


def heap(page: Page) -> int:
    """Bytes that the page's scripts hold."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = session.send("Performance.getMetrics")["metrics"]
    return int(next(one["value"] for one in metrics if one["name"] == "JSHeapUsedSize"))


def server_bytes(pid: int) -> int:
    """The most memory that the server has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cards(page: Page, count: int) -> None:
    """Wait for so many runs in the list."""
    page.wait_for_function(f"document.querySelectorAll('.run').length >= {count}")


def run_ids(page: Page) -> list[str]:
    """Of the list's runs, by name."""
    told = page.locator(".run").evaluate_all(
        "all => all.map(one => [one.querySelector('h2').textContent, one.id])"
    )
    return [run.removeprefix("run-") for _, run in sorted(told)]


def share(pid: int, seconds: float) -> float:
    """Of a core that the process takes."""
    before = cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / seconds
