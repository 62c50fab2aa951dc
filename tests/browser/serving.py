"""A real `surefoot ui`, in a process of its own, that a test can kill and start again at the same port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


class Served:
    """The server over one folder of runs; `home` is where the token is kept from one start to the next."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self._home = folder, home
        self._process: subprocess.Popen[str] | None = None
        self.link = self.origin = ""
        self.start()

    def start(self) -> None:
        """Start it; from the second time on, at the port of the first."""
        port = self.origin.rpartition(":")[2] or "0"
        command = [sys.executable, "-m", "surefoot", "ui", str(self.folder), "--json", "--port", port]
        env = {**os.environ, "XDG_STATE_HOME": str(self._home)}
        env.pop("SUREFOOT_UI_TOKEN", None)
        self._process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        assert told["pid"] == self._process.pid
        assert self.link in ("", told["url"]), "the link outlives the server"
        self.link = told["url"]
        self.origin = self.link.partition("/#")[0]

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def at(self, path: str = "/") -> str:
        """A page's address, with the key."""
        return f"{self.origin}{path}#{self.link.partition('#')[2]}"


def until(page: Page, holds: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait while the page goes on (wait_for_function would need eval, which the page forbids)."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"did not hold within {seconds} s"
        page.wait_for_timeout(20)


def card(page: Page, name: str) -> Locator:
    """A run of the list."""
    title = page.locator("h2 a", has_text=re.compile(f"^{re.escape(name)}$"))
    return page.locator("article.run").filter(has=title)


def names(page: Page) -> list[str]:
    """The runs that the list shows, in their order."""
    return page.locator("article.run h2 a").all_inner_texts()


def run_id(page: Page, name: str) -> str:
    """The id of a run that the list shows."""
    return str(card(page, name).get_attribute("id")).removeprefix("run-")
