"""Where a run stands, told from its folder: by the lock that its process holds, its last record, and the clock."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from surefoot.dashboard import state as module
from surefoot.dashboard.index import Index
from surefoot.dashboard.state import QUIET_SECONDS, State, held, state_of
from surefoot.runfolder import RunFolder
from tests.dashboard import real

HOLD = """
import sys
from surefoot.runfolder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
print("let go", flush=True)
sys.stdin.close()
import time
time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that trains here, until its input ends; it lives on."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdin = None
    assert process.stdout.readline() == "let go\n"


def stands(folder: Path, now: float | None = None) -> State:
    index = Index(folder)
    index.grow()
    return state_of(index, now)


def not_of_here(folder: Path) -> Path:
    """As if another machine trained it."""
    (folder / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    return folder


# The lock ----------------------------------------------------------------------------------------------------


def test_the_lock_of_a_process_that_lives(tmp_path: Path) -> None:
    run = real.run(tmp_path / "run", 8, total=20, ended=None).path
    assert held(run) is None
    with holder(run) as process:
        assert held(run) is True
        found = stands(run)
        assert (found.name, found.live, found.step, found.total_steps) == ("training", True, 8, 20)
        assert found.seconds_per_step == pytest.approx(0.7)
        assert found.seconds_left == pytest.approx(12 * 0.7)
        # Asking did not take it: the next to come is told who has it.
        with pytest.raises(ValueError, match=f"process {process.pid}"), RunFolder(run).locked():
            pass
        copied = tmp_path / "copied"
        shutil.copytree(run, copied)
        assert held(copied) is False and stands(copied).name == "stopped"
        let_go(process)
        assert process.poll() is None and held(run) is False
        found = stands(run)
        assert (found.name, found.live, found.seconds_left) == ("stopped", False, None)


def test_the_lock_of_a_process_that_was_killed(tmp_path: Path) -> None:
    run = real.run(tmp_path, 3, total=9, ended=None).path
    with holder(run) as process:
        assert held(run) is True
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        assert held(run) is False
        assert stands(run).name == "stopped"


def test_a_run_taken_up_again_is_held_again(tmp_path: Path) -> None:
    run = real.run(tmp_path, 3, total=9, ended="interrupted").path
    with RunFolder(run).locked():
        pass
    assert held(run) is False and stands(run).name == "interrupted"
    with RunFolder(run).locked():
        assert held(run) is True
        found = stands(run)
        assert (found.name, found.live) == ("starting", True)
        RunFolder(run).append(real.step(4))
        assert stands(run).name == "training"


def test_where_the_kernel_has_no_list_the_process_has_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCKS", tmp_path / "none")
    run = real.run(tmp_path / "run", 3, total=9, ended=None).path
    with holder(run) as process:
        assert held(run) is True
        process.kill()
        process.wait(20)
        assert held(run) is False
    for pid in (0, -1, -process.pid, 10**30):
        (run / ".lock").write_text(json.dumps({"pid": pid, "host": socket.gethostname()}))
        assert not held(run), pid


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": 1}', '{"host": "x"}', "x" * 9000])
def test_a_lock_that_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(content)
    assert held(tmp_path) is None


def test_looking_leaves_the_lock_alone(tmp_path: Path) -> None:
    run = real.run(tmp_path, 2).path
    with RunFolder(run).locked():
        pass
    before = (run / ".lock").stat()
    held(run)
    after = (run / ".lock").stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        after.st_mtime_ns,
        after.st_size,
        after.st_ino,
    )


# What it comes to --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["finished", "stopped early", "interrupted"])
def test_an_end_that_was_recorded(reason: str, tmp_path: Path) -> None:
    run = real.run(tmp_path, 4, total=4, ended=reason).path
    for make in (lambda folder: folder, not_of_here):
        found = stands(make(run))
        assert (found.name, found.live, found.seconds_left) == (reason, False, None)
        assert found.since == pytest.approx(real.BEGAN + 0.7 * 4 + 0.2)


def test_a_run_that_is_over_is_over_while_its_process_still_saves(tmp_path: Path) -> None:
    run = real.run(tmp_path, 4).path
    with RunFolder(run).locked():
        assert (stands(run).name, stands(run).live) == ("finished", False)


def test_before_the_first_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    real.config(run, 9)
    with run.locked():
        assert stands(tmp_path).name == "starting"
        run.append(real.start(9))
        found = stands(tmp_path)
        assert (found.name, found.live, found.step, found.total_steps) == ("starting", True, 0, 9)
        assert found.seconds_left is None and found.seconds_per_step is None
    assert stands(tmp_path).name == "stopped"


def test_a_run_of_another_machine_is_judged_by_its_age(tmp_path: Path) -> None:
    run = not_of_here(real.run(tmp_path, 8, total=20, ended=None).path)
    last = real.BEGAN + 0.7 * 8
    assert stands(run, last + QUIET_SECONDS - 5).name == "training"
    assert stands(run, last - 3600).name == "training", "its clock is ahead"
    late = stands(run, last + QUIET_SECONDS + 5)
    assert (late.name, late.live) == ("stopped", False)


def test_slow_steps_are_waited_for(tmp_path: Path) -> None:
    run = RunFolder(not_of_here(tmp_path))
    for number in range(1, 6):
        run.append(real.step(number, time=real.BEGAN + 100.0 * number))
    last = real.BEGAN + 500.0
    assert stands(tmp_path, last + 1_900).name == "training"
    assert stands(tmp_path, last + 2_100).name == "stopped"


def test_a_run_that_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    found = stands(tmp_path)
    assert (found.name, found.live, found.step, found.total_steps, found.since) == (
        "stopped",
        False,
        0,
        None,
        None,
    )


@pytest.mark.parametrize("brief", [False, True])
def test_the_pace_is_that_of_the_last_steps(brief: bool, tmp_path: Path) -> None:
    run, time = RunFolder(tmp_path), real.BEGAN
    real.config(run, 1_000)
    with run.locked():
        for number in range(1, 201):
            time += 9.0 if number < 100 else 2.0 if number % 20 else 60.0  # sometimes an evaluation
            run.append(real.step(number, time=time))
        index = Index(tmp_path, brief=brief)
        index.grow()
        found = state_of(index)
    assert found.seconds_per_step == pytest.approx(2.0)
    assert found.seconds_left == pytest.approx(2.0 * 800)


@pytest.mark.parametrize("total", [None, "9", True, -1, 2.5, 1 << 60, [9]])
def test_how_many_steps_there_will_be_is_a_number_or_unknown(total: object, tmp_path: Path) -> None:
    run = real.run(tmp_path, 4, total=30, ended=None)
    (tmp_path / "run.json").write_text(json.dumps({"total_steps": total}))
    with run.locked():
        assert stands(tmp_path).total_steps == 30  # its beginning told, too
