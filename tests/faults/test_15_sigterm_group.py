"""Fault 15: SIGTERM to the whole process group, as schedulers send it: to everybody, and more than once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.faults.children import Zygote
from tests.faults.conftest import Recipe
from tests.faults.disturbed import same, train
from tests.faults.test_14_sigterm import PATCHES, stopped


def test_to_the_group_several_times(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """In a step, and again while it is left and saved: it is one request, and no second one to hurry."""
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    child = zygote.start(
        argv, tmp_path, group=True, patch=f"{PATCHES}:wait_in_step_and_last_save", patch_args={"step": 8}
    )
    child.until((tmp_path / "waiting").exists)
    for _ in range(3):
        os.killpg(child.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    child.until((tmp_path / "saving").exists)
    for _ in range(3):
        os.killpg(child.pid, signal.SIGTERM)
        os.killpg(child.pid, signal.SIGHUP)
    (tmp_path / "go-on").touch()
    assert stopped(run, 143, child) == 7
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")
