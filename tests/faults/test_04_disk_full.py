"""Fault 4: the disk is full during a save. Training goes on, says the bytes needed, and saves again when it can."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.train.manifest import manifest_of, verify
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe
from tests.faults.full import small_disk

FULL = "tests.faults.patches_disk:full_for_saves"


@pytest.mark.parametrize("within", [False, True])
def test_a_full_disk_costs_a_save_and_nothing_else(
    within: bool, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    argv, whole = ["train", recipe(), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        how = {"disk": str(disk), "from_step": 6, "to_step": 9, "leave": 0x14000, "within": within}
        child = zygote.run([*argv, disk / "run"], tmp_path, patch=FULL, patch_args=how)
        assert child.wait() == 0, child.err
        run, needed = disk / "run", manifest_of(whole / "checkpoints" / "step-00000006").bytes
        alert = next(event for event in events(run) if event["type"] == "alert")
        assert (alert["step"], alert["kind"]) == (6, "checkpoint")
        said = f"the checkpoint of step 6 could not be saved in {run}/checkpoints: No space left on device"
        assert alert["message"].startswith(said)
        # The state tells of other rows, and of another run folder's size of events: a few bytes more or less.
        told = int(alert["message"].rsplit("(a checkpoint takes ", 1)[1].split(" ")[0].replace(",", ""))
        assert abs(told - needed) < 200
        left = [path.name for path in sorted((run / "checkpoints").iterdir())]
        assert left == [f"step-{step:08d}" for step in (3, 9, 12)]
        for name in left:
            verify(run / "checkpoints" / name)
        untold = [e for e in clock_free(events(whole)) if (e["type"], e["step"]) != ("checkpoint", 6)]
        assert [event for event in clock_free(events(run)) if event["type"] != "alert"] == untold
        assert state_hashes(run, 12) == state_hashes(whole, 12)


def test_a_run_killed_while_the_disk_was_full_goes_on(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """A disk with no room at all: what is there can still be gone on from once there is some."""
    argv, whole = ["train", recipe(), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        how = {"disk": str(disk), "from_step": 5, "kill_at_step": 8}
        patch = "tests.faults.patches_disk:full_for_the_log"
        assert zygote.run([*argv, disk / "run"], tmp_path, patch=patch, patch_args=how).wait() == -9
        child = zygote.run([*argv, disk / "run"], tmp_path)
        assert child.wait() == 2
        said = f"surefoot: output_dir: {disk}/run cannot be written: No space left on device."
        assert child.err.startswith(said) and child.err.count("\n") == 1
        (disk / "ballast").unlink()
        child = zygote.run([*argv, disk / "run"], tmp_path)
        assert child.wait() == 0, child.err
        assert clock_free(events(disk / "run")) == clock_free(events(whole))
        assert state_hashes(disk / "run", 12) == state_hashes(whole, 12)
