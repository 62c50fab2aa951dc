"""surefoot train --ui: the page is there as long as the run, and no longer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from surefoot.commands.beside import page_beside
from surefoot.errors import UserError
from tests.conftest import write_recipe


def port_of(text: str) -> int:
    found = re.search(r"page: http://127\.0\.0\.1:(\d+)/#token=\S{43}", text)
    assert found is not None, text
    return int(found[1])


def answers(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_the_page_is_there_while_it_is_wanted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with page_beside(str(tmp_path / "run"), wanted=True):
        port = port_of(capfd.readouterr().err)
        assert answers(port)
    assert not answers(port)


def test_nothing_is_started_unasked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with page_beside(str(tmp_path / "run"), wanted=False):
        assert not (tmp_path / "run").exists()
    assert capfd.readouterr().err == ""


def test_a_page_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_UI_TOKEN", "short")
    with (
        pytest.raises(UserError, match=r"--ui: SUREFOOT_UI_TOKEN is too short"),
        page_beside(str(tmp_path / "run"), wanted=True),
    ):
        pytest.fail("it did start")


def test_a_run_that_is_killed_takes_its_page_along(tmp_path: Path) -> None:
    code = (
        "import sys, time; from surefoot.commands.beside import page_beside\n"
        "with page_beside(sys.argv[1], wanted=True):\n    time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True
    )
    assert run.stderr is not None
    port = port_of(run.stderr.readline())
    assert answers(port)
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stderr.close()
    end = time.monotonic() + 10
    while answers(port) and time.monotonic() < end:
        time.sleep(0.1)
    assert not answers(port)


def test_a_run_with_its_page(tmp_path: Path, tiny_folder: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_folder, max_steps=2)
    words = (
        "train",
        str(recipe),
        "--ui",
        "--slides_from_ui",
        "--tags",
        "a,b",
        "--output_dir",
        str(tmp_path / "run"),
    )
    said = subprocess.run(
        [sys.executable, "-m", "surefoot", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert not answers(port_of(said.stderr))
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["slides_from_ui"], config["tags"]) == (True, ["a", "b"])
