"""Fault 7: fsync fails. What the disk did not take is written again under a new name; if it never takes it,
training goes on, and what was saved before is intact."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from surefoot.runfolder import numbered
from surefoot.train.manifest import verify
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe

PATCHES = "tests.faults.patches_disk"
ALWAYS = -1
FILES = ["weights.safetensors", "state.json", "manifest.json", "partial", "checkpoints"]


def sound(run: Path) -> list[int]:
    return [verify(path).step for _, path in numbered(run / "checkpoints")]


def same(run: Path, whole: Path, missing: int | None = None) -> None:
    """But for alerts, and for a checkpoint that could not be saved."""
    records = [event for event in clock_free(events(run)) if event["type"] != "alert"]
    want = [e for e in clock_free(events(whole)) if (e["type"], e["step"]) != ("checkpoint", missing)]
    assert records == want
    assert state_hashes(run, 12) == state_hashes(whole, 12)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.fixture
def whole(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> Path:
    """A run that nothing has happened to."""
    assert (
        zygote.run(["train", recipe("whole.yaml", output_dir=str(tmp_path / "whole"))], tmp_path).wait() == 0
    )
    return tmp_path / "whole"


@pytest.mark.parametrize("of", FILES)
def test_once_it_is_written_again_under_a_new_name(
    of: str, whole: Path, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    how = {"of": of, "step": 6, "times": 1, "log": str(log)}
    child = zygote.run(["train", recipe()], tmp_path, patch=f"{PATCHES}:failing_sync", patch_args=how)
    assert child.wait() == 0, child.err
    names = log.read_text().split()
    assert [name for name in names if "00000006" in name] == [f".step-00000006.partial-{n}" for n in (0, 1)]
    assert sound(run) == [3, 6, 9, 12]
    assert all(event["type"] != "alert" for event in events(run))
    same(run, whole)


@pytest.mark.parametrize(
    ("of", "number", "tries"),
    [("optimizer.safetensors", errno.EIO, 3), ("checkpoints", errno.EIO, 3), ("state.json", errno.ENOSPC, 1)],
)
def test_a_save_that_the_disk_never_takes(
    of: str, number: int, tries: int, whole: Path, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """Tried three times, but only once where there is no room; then it is said, and the next save works."""
    run, log = tmp_path / "run", tmp_path / "log"
    how = {"of": of, "step": 6, "times": tries, "number": number, "log": str(log)}
    child = zygote.run(["train", recipe()], tmp_path, patch=f"{PATCHES}:failing_sync", patch_args=how)
    assert child.wait() == 0, child.err
    assert log.read_text().count("00000006") == tries
    (alert,) = [event for event in events(run) if event["type"] == "alert"]
    why = {errno.EIO: "Input/output error", errno.ENOSPC: "No space left on device (a checkpoint takes "}[
        number
    ]
    said = f"the checkpoint of step 6 could not be saved in {run}/checkpoints: {why}"
    assert alert["step"] == 6 and alert["message"].startswith(said)
    assert sound(run) == [3, 9, 12]
    same(run, whole, missing=6)


@pytest.mark.parametrize("of", ["weights.safetensors", "checkpoints"])
def test_a_disk_that_takes_nothing_any_more(
    of: str, whole: Path, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    how = {"of": of, "step": 6, "times": ALWAYS, "log": str(tmp_path / "log"), "short_waits": True}
    child = zygote.run(["train", recipe()], tmp_path, patch=f"{PATCHES}:failing_sync", patch_args=how)
    assert child.wait() == 1
    said = [line for line in child.err.splitlines() if line.startswith("surefoot: ")]
    assert len(said) == 1 and "Traceback" not in child.err
    assert "the checkpoint of step 12 could not be saved" in said[0] and "Input/output error" in said[0]
    assert said[0].endswith("the same command goes on from the checkpoint of step 3.")
    assert [e["step"] for e in events(run) if e["type"] == "step"] == list(range(1, 13))
    assert [e["step"] for e in events(run) if e["type"] == "alert"] == [6, 9, 12]
    assert sound(run) == [3]
    child = zygote.run(["train", recipe()], tmp_path)
    assert child.wait() == 0, child.err
    same(run, whole)


def test_a_log_that_is_not_taken_makes_no_checkpoint(
    whole: Path, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    """A checkpoint says how long the log was; it is not committed while that is not certain."""
    how = {"step": 6}
    child = zygote.run(["train", recipe()], tmp_path, patch=f"{PATCHES}:log_not_synced", patch_args=how)
    assert child.wait() == 0, child.err
    assert sound(tmp_path / "run") == [3, 9, 12]
    same(tmp_path / "run", whole, missing=6)
