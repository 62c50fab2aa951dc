"""Fault 2: killed inside a save, at every operation of it; and in whatever else changes what a run goes on from."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli import main
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe

PATCHES = "tests.faults.patches_saves"
LAST = 4


class Killed:
    """A run of four steps, each saved and the last two kept, that was killed when it began its third save."""

    def __init__(self, zygote: Zygote, recipe: Recipe, place: Path) -> None:
        self.zygote, self.place = zygote, place
        self.recipe = recipe(max_steps=LAST, save_steps=1, save_total_limit=2)
        self.whole, self.begun = place / "whole", place / "begun"
        assert self.train(self.whole) == 0
        assert self.train(self.begun, "at_operation", number=0, saves=3) == -9
        assert self.steps(self.begun) == [1, 2]

    def train(self, run: Path, patch: str | None = None, **how: Any) -> int:
        more = {"patch": f"{PATCHES}:{patch}", "patch_args": how} if patch else {}
        child = self.zygote.run(["train", self.recipe, "--output_dir", run], self.place, **more)
        self.said = child.err
        return child.wait()

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.begun, self.place / name))

    def steps(self, run: Path) -> list[int]:
        return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))

    def goes_on_from(self, run: Path) -> int:
        """What `surefoot verify` says; every checkpoint must be sound."""
        with redirect_stdout(StringIO()) as out:
            assert main(["verify", str(run), "--json"]) == 0, out.getvalue()
        return json.loads(out.getvalue())["resume_from"]

    def ends_as_if_nothing_had_been(self, run: Path, step: int) -> None:
        """The same command again."""
        assert self.train(run) == 0, self.said
        assert json.loads((run / "run.json").read_text("utf-8"))["resumed"][-1]["step"] == step
        records = [event for event in clock_free(events(run)) if event["type"] != "alert"]
        assert records == clock_free(events(self.whole))
        assert state_hashes(run, LAST) == state_hashes(self.whole, LAST)
        assert self.steps(run) == self.steps(self.whole) == [3, 4]
        left = {
            path.name for path in [*run.iterdir(), *(run / "checkpoints").iterdir()] if path.name[0] == "."
        }
        assert left == {".lock"}
        shutil.rmtree(run)


@pytest.fixture
def killed(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> Killed:
    return Killed(zygote, recipe, tmp_path)


def test_at_every_operation_of_a_save(killed: Killed, tmp_path: Path) -> None:
    run, log = killed.copy("looked-at"), tmp_path / "operations"
    assert killed.train(run, "at_operation", number=-2, log=str(log)) == 0
    operations = log.read_text().split()
    operations = operations[: operations.index("make_folder", 1)]
    file = ["create", *["write"] * 2, "sync", "close"]
    small = ["create", "write", "sync", "close"]
    removal = ["rename", "sync_folder", "remove"]
    assert operations == [
        *("make_folder", *file, *file, *small, "sync_folder", *small, "sync_folder"),
        *("rename", "sync_folder", *removal),
    ]
    committed = operations.index("rename") + 1
    points = [(number, False) for number, name in enumerate([*operations, "the end"]) if name != "close"]
    points += [(number, True) for number, name in enumerate(operations) if name in ("write", "remove")]
    found = {}
    for number, half in points:
        run = killed.copy(f"killed-{number}-{half}")
        assert killed.train(run, "at_operation", number=number, half=half) == -9
        found[number, half] = step = killed.goes_on_from(run)
        assert step == (3 if number >= committed else 2), (number, half)
        killed.ends_as_if_nothing_had_been(run, step)
    assert set(found.values()) == {2, 3}


@pytest.mark.parametrize(("syncs", "after"), [(1, False), (1, True), (2, False), (2, True)])
def test_while_the_events_are_cut(killed: Killed, syncs: int, after: bool) -> None:
    """Before and after what is cut off is safe elsewhere, and before and after it is cut off for good."""
    run = killed.copy("cut")
    # The save it was killed in runs beside the training, which may have been a step further by then.
    assert [event["step"] for event in events(run) if event["type"] == "step"][:3] == [1, 2, 3]
    assert killed.train(run, "in_go_back", syncs=syncs, after=after) == -9
    # Killed in it twice.
    assert killed.train(run, "in_go_back", syncs=1, after=False) == -9
    discarded = run / "events.discarded.jsonl"
    assert killed.goes_on_from(run) == 2
    kept = discarded.read_text().splitlines()
    assert 3 in {json.loads(line)["step"] for line in kept}
    killed.ends_as_if_nothing_had_been(run, 2)


def test_between_the_renames_of_the_result(killed: Killed) -> None:
    run = killed.copy("result")
    for name, to, after in (
        (".model.partial", "model", False),
        (".model.partial", "model", True),
        ("model", ".model.old", False),
        ("model", ".model.old", True),
        (".model.partial", "model", True),
        (".model.partial", "model", True),
    ):
        assert killed.train(run, "at_rename", name=name, to=to, after=after) == -9, (name, to, after)
        assert killed.goes_on_from(run) == LAST
        if (run / "model").exists():
            assert state_hashes(run, LAST) == state_hashes(killed.whole, LAST)
        elif after:  # the one that was there is still to be had
            assert (run / ".model.old" / "model.safetensors").exists()
    killed.ends_as_if_nothing_had_been(run, LAST)


@pytest.mark.parametrize("number", range(5))
def test_while_a_damaged_one_is_put_aside(killed: Killed, number: int) -> None:
    run = killed.copy("damaged")
    weights = run / "checkpoints" / "step-00000002" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert killed.train(run, "at_operation", number=number) == -9
    aside = run / "checkpoints" / "quarantine"
    assert killed.steps(run) == ([1, 2] if number < 2 else [1])
    assert killed.train(run) == 0, killed.said
    assert [path.name for path in aside.iterdir()] == ["step-00000002"]
    assert (aside / "step-00000002" / "weights.safetensors").read_bytes() == content
    records = [event for event in clock_free(events(run)) if event["type"] != "alert"]
    assert records == clock_free(events(killed.whole))
    assert state_hashes(run, LAST) == state_hashes(killed.whole, LAST)


def test_a_save_that_lasts_till_the_next_is_told_of(killed: Killed) -> None:
    """A save in the background is told of after the next one's state was taken; killed then, it is told again."""
    run = killed.place / "slow"
    assert killed.train(run, "slow_writes", seconds=0.5, kill_at_save=2) == -9
    assert killed.goes_on_from(run) == 2
    killed.ends_as_if_nothing_had_been(run, 2)
