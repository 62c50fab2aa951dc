"""Fault 12: two runs in one folder. The second is refused at once, with the pid and host of the first, which
notices nothing; and nobody who has died keeps a folder."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from surefoot import SFTConfig, SFTTrainer
from surefoot.errors import UserError
from surefoot.recipes import read_recipe
from surefoot.runfolder import RunFolder
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.disturbed import refused, same, train

WAIT = "tests.faults.patches_signals:wait_in_step"


def names(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("flags", [[], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "true"]])
def test_the_second_is_refused_at_once(
    flags: list[str], zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    first = zygote.start(argv, tmp_path, patch=WAIT, patch_args={"step": 5})
    first.until((tmp_path / "waiting").exists)
    first.until((run / "checkpoints" / "step-00000003").is_dir)
    before = names(run)
    # It does not even read its model.
    second = zygote.run([*argv, *flags, "--model_name_or_path", str(tmp_path / "no-model")], tmp_path)
    refused(
        second,
        f"output_dir: process {first.pid} on {socket.gethostname()} is training in {run}.",
        "Wait for it, stop it (it saves on SIGTERM), or name another folder",
    )
    assert names(run) == before
    (tmp_path / "go").touch()
    assert first.wait() == 0, first.err
    same(run, tmp_path / "whole")


def test_the_second_is_refused_too_when_it_was_there_before_the_first_began(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """Both look at a folder that nobody has; the later one to take it is refused then."""
    train(zygote, recipe, tmp_path, "whole")
    argv = ["train", recipe()]
    late = zygote.start(argv, tmp_path, patch="tests.faults.patches_signals:wait_in_loading")
    late.until((tmp_path / "waiting").exists)
    other = tmp_path / "first"  # the same output_dir, but another folder to wait in
    other.mkdir()
    first = zygote.start(argv, other, patch=WAIT, patch_args={"step": 5})
    first.until((other / "waiting").exists)
    (tmp_path / "go").touch()
    refused(late, f"process {first.pid} on {socket.gethostname()} is training in {tmp_path / 'run'}")
    (other / "go").touch()
    assert first.wait() == 0, first.err
    same(tmp_path / "run", tmp_path / "whole")


def test_the_dead_hold_nothing(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    first = zygote.start(argv, tmp_path, patch=WAIT, patch_args={"step": 5})
    first.until((tmp_path / "waiting").exists)
    first.kill(signal.SIGKILL)
    assert first.wait() == -9
    assert str(first.pid) in (run / ".lock").read_text()  # the file stays; nobody has it
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_two_trainers_in_one_process(recipe: Recipe, tmp_path: Path) -> None:
    args = SFTConfig(**read_recipe(recipe(max_steps=2, disable_tqdm=True)))
    first, second = SFTTrainer(args=args), SFTTrainer(args=args)
    with first.run.locked():
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is training in {tmp_path / 'run'}"):
            second.train()
        assert not (tmp_path / "run" / "events.jsonl").exists()
    second.train()
    with pytest.raises(UserError, match="holds a run that finished after step 2"):
        first.train()


def test_a_lock_file_of_rubbish_says_less(tmp_path: Path) -> None:
    for content in (b"", b"[]", b"\xff", b'{"pid": 1}'):
        with RunFolder(tmp_path).locked():
            (tmp_path / ".lock").write_bytes(content)
            with (
                pytest.raises(UserError, match="another process is training in"),
                RunFolder(tmp_path).locked(),
            ):
                raise AssertionError("locked twice")


def test_a_file_system_without_locks(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """There nobody can be kept out, and a run is not refused for it."""
    train(zygote, recipe, tmp_path, patch="tests.faults.patches_folder:no_locks")
    assert events(tmp_path / "run")[-1]["reason"] == "finished"
    assert (tmp_path / "asked").exists()


def test_a_lock_that_is_held_far_away(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Some network file systems say "permission denied" when somebody else has the lock."""
    child = zygote.run(["train", recipe()], tmp_path, patch="tests.faults.patches_folder:locked_far_away")
    refused(child, "another process is training in")
