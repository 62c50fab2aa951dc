"""Fault 5: the disk is full when the last step, or the model, is to be saved. It waits; then it stops, and says how
to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from surefoot.runfolder import numbered
from surefoot.train.manifest import verify
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe
from tests.faults.full import small_disk, unfill

FULL = "tests.faults.patches_disk:full_at_the_end"
ENDS = [
    pytest.param({"step": 12, "leave": 0x14000}, id="checkpoint"),
    pytest.param({"leave": 0x8000}, id="weights"),
    pytest.param(
        {"leave": 0x18000}, id="tokenizer"
    ),  # room for the weights, which raise an error of their own kind
]


@pytest.mark.parametrize("how", ENDS)
def test_room_comes_while_it_waits(
    how: dict[str, Any], zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    argv, whole = ["train", recipe(), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        how = {**how, "disk": str(disk), "unfill_at_wait": 2}
        child = zygote.run([*argv, disk / "run"], tmp_path, patch=FULL, patch_args=how)
        assert child.wait() == 0, child.err
        assert not (disk / "ballast").exists()
        alerts = [event for event in events(disk / "run") if event["type"] == "alert"]
        if "step" in how:
            assert len(alerts) == 1 and "No space left on device" in alerts[0]["message"]
        else:
            assert not alerts and child.err.count("the model could not be saved") == 1
        assert [e for e in clock_free(events(disk / "run")) if e["type"] != "alert"] == clock_free(
            events(whole)
        )
        assert state_hashes(disk / "run", 12) == state_hashes(whole, 12)


@pytest.mark.parametrize("how", ENDS)
def test_no_room_comes(how: dict[str, Any], zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    argv, whole = ["train", recipe(), "--output_dir"], tmp_path / "whole"
    assert zygote.run([*argv, whole], tmp_path).wait() == 0
    with small_disk(tmp_path / "disk") as disk:
        run = disk / "run"
        child = zygote.run([*argv, run], tmp_path, patch=FULL, patch_args={**how, "disk": str(disk)})
        assert child.wait() == 1
        said = [line for line in child.err.splitlines() if line.startswith("surefoot: ")]
        assert len(said) == 1 and "Traceback" not in child.err
        assert "No space left on device" in said[0] and "tried again for 0 s. " in said[0]
        last = 9 if "step" in how else 12
        if last == 9:
            assert said[0].endswith("the same command goes on from the checkpoint of step 9.")
        else:
            assert said[0].endswith("intact: make room, and the same command saves the model")
        assert [step for step, _ in numbered(run / "checkpoints")] == list(range(3, last + 1, 3))
        for _, path in numbered(run / "checkpoints"):
            verify(path)
        assert not (run / "model").exists() and not (run / ".model.partial").exists()
        assert not list((run / "checkpoints").glob(".step-*"))
        unfill(disk)
        child = zygote.run([*argv, run], tmp_path)
        assert child.wait() == 0, child.err
        assert clock_free(events(run)) == clock_free(events(whole))
        assert state_hashes(run, 12) == state_hashes(whole, 12)
