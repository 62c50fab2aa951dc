"""Fault 6: the disk is full for the log. Records go to stderr, the run goes on, and the log is whole in the end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe
from tests.faults.full import small_disk

PATCHES = "tests.faults.patches_disk"


def test_records_wait_for_room(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    argv, whole = ["train", recipe(save_steps=20), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        how = {"disk": str(disk), "from_step": 2, "to_step": 11}
        patch = f"{PATCHES}:full_for_the_log"
        child = zygote.run([*argv, disk / "run"], tmp_path, patch=patch, patch_args=how)
        assert child.wait() == 0, child.err
        # Every line is a record, and they are in order: `events` fails at half a line.
        assert clock_free(events(disk / "run")) == clock_free(events(whole))
        assert state_hashes(disk / "run", 12) == state_hashes(whole, 12)
        cannot = (
            f"surefoot: {disk}/run/events.jsonl cannot be written (No space left on device); the record is: "
        )
        said = [line.removeprefix(cannot) for line in child.err.splitlines() if line.startswith(cannot)]
        told = [json.loads(line) for line in said]
        # A page's rest may still have taken the first ones.
        steps = [record["step"] for record in told if record["type"] == "step"]
        assert steps == list(range(steps[0], 11)) and steps[0] <= 9
        assert all(record in events(disk / "run") for record in told)


def test_what_waits_is_written_before_a_checkpoint_counts_on_it(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """Room comes between a step's record and its save; killed after the save, nothing of the log is missing."""
    argv, whole = ["train", recipe(save_steps=9), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        how = {"disk": str(disk), "from_step": 1, "save": 9}
        patch = f"{PATCHES}:full_until_the_save"
        child = zygote.run([*argv, disk / "run"], tmp_path, patch=patch, patch_args=how)
        assert child.wait() == -9 and "cannot be written" in child.err
        child = zygote.run([*argv, disk / "run"], tmp_path)
        assert child.wait() == 0, child.err
        resumed = json.loads((disk / "run" / "run.json").read_text("utf-8"))["resumed"]
        assert [entry["step"] for entry in resumed] == [9]
        assert clock_free(events(disk / "run")) == clock_free(events(whole))
        assert state_hashes(disk / "run", 12) == state_hashes(whole, 12)
