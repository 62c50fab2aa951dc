"""Fault 16: Ctrl-C. Once: the run saves and stops, with 130, and says how to go on. Twice: it stops now, and what
was committed is intact."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surefoot.train.manifest import verify
from tests.faults.children import Child, Zygote, events, last_step
from tests.faults.conftest import Recipe
from tests.faults.disturbed import LAST, same, steps_left, train
from tests.faults.test_14_sigterm import PATCHES, stopped


def test_once(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", str(recipe()), "--project", "two words"]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:wait_in_step", patch_args={"step": 5})
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGINT)
    (tmp_path / "go").touch()
    assert stopped(run, 130, child) == 4
    typed = shlex.split(child.err.rstrip().splitlines()[-1])  # what a user would copy
    assert typed == ["surefoot", *argv]
    again = zygote.run(typed[1:], tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def twice(child: Child, folder: Path) -> None:
    """Two Ctrl-C, the second while the child still waits in what the first one found it in."""
    child.until((folder / "waiting").exists)
    child.kill(signal.SIGINT)
    child.until((folder / "heard").exists)  # two that are pending at once are one
    child.kill(signal.SIGINT)


@pytest.mark.parametrize("step", [2, 5])
def test_twice_in_a_step(step: int, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Also before there is any checkpoint."""
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:wait_in_step", patch_args={"step": step})
    if step > 3:  # what is still on its way is given up
        child.until((run / "checkpoints" / "step-00000003").is_dir)
    twice(child, tmp_path)  # it never gets its "go"
    assert child.wait() == 130, child.err
    assert "surefoot: interrupted" in child.err and "Traceback" not in child.err
    assert steps_left(run) == ([3] if step > 3 else [])
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


@pytest.mark.parametrize("step", [6, LAST])
def test_twice_while_the_disk_does_not_answer(
    step: int, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """In a save: nobody waits for it, and the checkpoint before it is whole."""
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:never_done_save", patch_args={"step": step})
    began = time.monotonic()
    twice(child, tmp_path)
    assert child.wait() == 130, child.err
    assert time.monotonic() - began < 30  # the disk takes 60 s
    assert "surefoot: interrupted" in child.err and "Traceback" not in child.err
    assert steps_left(run)[-1] == step - 3
    assert step not in [event["step"] for event in events(run) if event["type"] == "checkpoint"]
    for number in steps_left(run):
        verify(run / "checkpoints" / f"step-{number:08d}")
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    assert not list((run / "checkpoints").glob(".step-*"))
    same(run, tmp_path / "whole")


def test_twice_in_a_step_while_the_disk_does_not_answer(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """A save in the background is not waited for either, and nothing says that it was done."""
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    patch = f"{PATCHES}:never_done_save_and_wait_in_step"
    child = zygote.start(argv, tmp_path, patch=patch, patch_args={"save": 6, "step": 8})
    child.until((tmp_path / "stuck").exists)
    began = time.monotonic()
    twice(child, tmp_path)
    assert child.wait() == 130, child.err
    assert time.monotonic() - began < 30  # the disk takes 60 s
    told = [event["step"] for event in events(run) if event["type"] == "checkpoint"]
    assert told == steps_left(run) == [3]
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_before_the_first_step_nothing_is_there_to_save(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """While model and rows are read, Ctrl-C ends the command at once, and the same command begins."""
    argv = ["train", recipe()]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:wait_in_loading")
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGINT)
    assert child.wait() == 130, child.err
    assert child.err.endswith("surefoot: interrupted\n") and "Traceback" not in child.err
    assert last_step(tmp_path / "run") == 0
    assert zygote.run(argv, tmp_path).wait() == 0


def test_a_real_process_too(recipe: Recipe, tmp_path: Path) -> None:
    """Not forked from anything: the interpreter's own way out does not turn 130 into something else."""
    argv = [sys.executable, "-m", "surefoot", "train", str(recipe(max_steps=100_000, save_steps=50_000))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(argv, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 90
        while last_step(tmp_path / "run") < 2:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        try:
            _, said = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 130, said
    assert "Go on with:\n  surefoot train " in said and "Traceback" not in said
    assert len(steps_left(tmp_path / "run")) == 1
