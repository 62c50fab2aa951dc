"""surefoot train --ui: the run's page, in a process of its own, for as long as the run lasts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surefoot.errors import UserError

PARENT = "SUREFOOT_UI_PARENT"
"""In the environment of a page that a run started: it ends when its standard input does."""
PATIENCE_SECONDS = 10.0
"""For the page to end by itself."""


@contextmanager
def page_beside(folder: str, *, wanted: bool) -> Iterator[None]:
    """While open, `surefoot ui` serves this folder, if `wanted`; the link is printed to stderr.

    It cannot outlive the run, however that ends: it reads a pipe that closes with it. Raises UserError when it does
    not start.
    """
    if not wanted:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "surefoot", "ui", folder, "--no-browser", "--json"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env={**os.environ, PARENT: str(os.getpid())},
        start_new_session=True,  # Ctrl-C is the run's: its page shows how it ends
    ) as page:
        assert page.stdin is not None and page.stdout is not None and page.stderr is not None
        line = page.stdout.readline()
        if not line:
            why = page.stderr.read().strip().removeprefix("surefoot: ")
            raise UserError(f"--ui: {why or 'the page did not start'}")
        print(f"page: {json.loads(line)['url']}", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            page.stdin.close()
            try:
                page.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                page.kill()
