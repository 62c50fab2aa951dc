"""Fault 17: nobody listens any more: stdout or stderr is closed, or a pipe whose reader has gone. The run goes on
to its end, and its result is there. And a pipe that breaks elsewhere is never taken for success."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.disturbed import same, train

BEGIN = f"exec {sys.executable} -m surefoot train "
SHELL = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PATCHES = "tests.faults.patches_pipes"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of bash, as a user types it, in `folder`."""
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=SHELL, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed(closed: str, recipe: Recipe, zygote: Zygote, tmp_path: Path) -> None:
    """In a process of its own, which begins like that: what it opens first is not taken for stdout."""
    train(zygote, recipe, tmp_path, "whole")
    done = shell(f"{BEGIN} {recipe()} {closed}", tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "mean loss" not in done.stderr and "Traceback" not in done.stderr
    same(tmp_path / "run", tmp_path / "whole")
    for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines():
        json.loads(line)
    assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"]


def test_to_head(recipe: Recipe, zygote: Zygote, tmp_path: Path) -> None:
    """`2>&1 | head -1`: the reader has what it wanted, and goes."""
    train(zygote, recipe, tmp_path, "whole")
    line = f"({BEGIN} {recipe()} 2>&1) | head -1; echo ${{PIPESTATUS[0]}}"
    done = shell(line, tmp_path)
    said, status = done.stdout.splitlines()
    assert (status, done.stderr) == ("0", "") and "16 rows" in said
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("deaf", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("json_", [False, True])
def test_readers_are_gone(
    deaf: tuple[int, ...], json_: bool, recipe: Recipe, zygote: Zygote, tmp_path: Path
) -> None:
    """From the first word on."""
    train(zygote, recipe, tmp_path, "whole")
    flags = ["--json"] if json_ else []
    child = zygote.run(
        ["train", recipe(), *flags], tmp_path, patch=f"{PATCHES}:dead_pipes", patch_args={"which": deaf}
    )
    assert child.wait() == 0, child.err
    assert "Traceback" not in child.err + child.out
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("deaf", [(2,), (1, 2)])
def test_a_mistake_keeps_its_status(deaf: tuple[int, ...], zygote: Zygote, tmp_path: Path) -> None:
    """It is said on a dead stderr; the status still says it."""
    for argv in (["train", "no-such-recipe.yaml"], ["train", "--no_such_option", "1"], ["no-such-command"]):
        child = zygote.run(argv, tmp_path, patch=f"{PATCHES}:dead_pipes", patch_args={"which": deaf})
        assert child.wait() == 2


def test_a_terminal_that_is_gone(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Every write fails in another way then."""
    train(zygote, recipe, tmp_path, patch=f"{PATCHES}:hung_up_terminal")
    assert events(tmp_path / "run")[-1]["reason"] == "finished"
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("when", ["parse", "model", "step", "result"])
def test_another_broken_pipe_is_no_success(when: str, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """A reporter's connection, say: the run has not been done, and the status says so."""
    child = zygote.run(
        ["train", recipe()], tmp_path, patch=f"{PATCHES}:break_elsewhere", patch_args={"when": when}
    )
    assert child.wait() not in (0, 2), child.err
    assert "BrokenPipeError: [Errno 32] of somebody else" in child.err
    if when != "result":
        assert not (tmp_path / "run" / "model").exists()


def test_what_only_prints_ends_quietly(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """`surefoot checkpoints RUN | head`; but a checkpoint that is damaged is in the status all the same."""
    train(zygote, recipe, tmp_path)
    deaf = {"patch": f"{PATCHES}:dead_pipes", "patch_args": {"which": [1]}}
    for command in ("checkpoints", "verify"):
        child = zygote.run([command, "run"], tmp_path, **deaf)
        assert (child.wait(), child.err) == (0, "")
    weights = tmp_path / "run" / "checkpoints" / "step-00000006" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    child = zygote.run(["verify", "run"], tmp_path, **deaf)
    assert (child.wait(), child.err) == (1, "")
