"""Fault 13: the clock jumps by days, back and forth. Steps decide what is newer, never times."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from surefoot.runfolder import numbered
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe

CLOCK = "tests.faults.patches_disk:jumping_clock"


def test_a_clock_that_jumps_changes_nothing(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    argv = ["train", recipe(save_steps=2, save_total_limit=3), "--output_dir"]
    whole, run, chance = tmp_path / "whole", tmp_path / "run", random.Random(13)
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    newest = []
    for seed, kill_at_step in enumerate((7, 11, None)):
        how = {"seed": seed, "kill_at_step": kill_at_step}
        child = zygote.run([*argv, run], tmp_path, patch=CLOCK, patch_args=how)
        assert child.wait() == (0 if kill_at_step is None else -9), child.err
        # The folders' times say the contrary of what their names do.
        for step, path in numbered(run / "checkpoints"):
            for file in (path, *path.iterdir()):
                backwards = 1e9 - step * 1e6 + chance.random()
                os.utime(file, (backwards, backwards))
        newest.append(max(step for step, _ in numbered(run / "checkpoints")))
    times = [event["time"] for event in events(run)]
    assert times != sorted(times) and max(times) - min(times) > 86_400
    resumed = json.loads((run / "run.json").read_text("utf-8"))["resumed"]
    assert [entry["step"] for entry in resumed] == newest[:2]
    assert [step for step, _ in numbered(run / "checkpoints")] == [8, 10, 12]
    assert clock_free(events(run)) == clock_free(events(whole))
    assert state_hashes(run, 12) == state_hashes(whole, 12)


def test_what_only_the_clock_decides_is_not_compared() -> None:
    decided = {"type": "step", "step": 3, "loss": 0.5, "slots": 60}
    clock = {"time": 1e9, "step_seconds": 0.1, "tokens_per_second": 600.0, "mfu": 0.3, "memory_bytes": 7}
    assert clock_free([decided | clock]) == [decided]


def test_reports_read_such_a_log(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    child = zygote.run(["train", recipe()], tmp_path, patch=CLOCK, patch_args={"seed": 5})
    assert child.wait() == 0, child.err
    for argv in (["report", "run"], ["verify", "run"], ["checkpoints", "run"]):
        child = zygote.run(argv, tmp_path)
        assert child.wait() == 0, (argv, child.err)
