"""Fault 3: power loss. Every operation of a run is recorded, and the disk is made that there would be if the power
failed after each of them; the run goes on there, never from half a checkpoint, and never from before one that was
said to be saved."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from surefoot.config import SFTConfig
from surefoot.runfolder import RunFolder, numbered
from surefoot.train.manifest import manifest_of, progress_of, state_of, verify
from surefoot.train.resume import find
from surefoot.train.saver import Saver
from tests.faults.children import Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe
from tests.faults.disk import (
    Keep,
    Trace,
    Tree,
    any_part,
    everything,
    names_only,
    nothing,
    put,
    tree_of,
    zeros,
)

RECORD = "tests.faults.patches_power:record"
LAST = 6
WAYS: dict[str, Keep | int] = {
    "nothing": nothing,
    "everything": everything,
    "names only": names_only,
    "zeros": zeros,
    "any part, 1": 1,
    "any part, 2": 2,
}


@dataclass(frozen=True)
class Recorded:
    """A run of which every operation is known."""

    trace: Trace
    options: dict[str, Any]
    content: dict[str, Any]
    """Its run.json."""
    saved: dict[int, dict[str, Any]]
    """Step → the files of its checkpoint, of a run in which nothing happened."""
    whole: Path


@pytest.fixture
def undisturbed(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """A recipe of six steps with a save after each second, and the folder of a run of it."""
    path = recipe(max_steps=LAST, save_steps=2, output_dir=str(tmp_path / "whole"))
    done = zygote.run(["train", path], tmp_path)
    assert done.wait() == 0, done.err
    return path, tmp_path / "whole"


def recorded(path: Path, whole: Path, *logs: Path) -> Recorded:
    saved = {step: manifest_of(found).files for step, found in numbered(whole / "checkpoints")}
    content = json.loads((whole / "run.json").read_text("utf-8"))
    return Recorded(Trace(*logs), yaml.safe_load(path.read_text()), content, saved, whole)


def argv(path: Path, place: Path) -> list[Any]:
    return ["train", path, "--output_dir", place / "run", "--save_total_limit", 2]


def digest(committed: list[int], tree: Tree) -> bytes:
    """Of what a disk holds, and what was said to be saved."""
    found = hashlib.sha256(repr(committed).encode())
    for path, content in tree.items():
        found.update(repr((path, None if content is None else len(content))).encode())
        found.update(content or b"")
    return found.digest()


def states(trace: Trace, first: int = 0) -> Iterator[tuple[int, str, Tree]]:
    """Each disk that there can be: after how many operations, in which way, and what it holds."""
    seen = set()
    for operations in range(first, len(trace.operations) + 1):
        for name, way in WAYS.items():
            keep = any_part(way * 1_000_003 + operations) if isinstance(way, int) else way
            tree = trace.after(operations, keep)
            known = digest(trace.committed(operations), tree)
            if known not in seen:
                seen.add(known)
                yield operations, name, tree


def goes_on(run: Recorded, operations: int, place: Path) -> int:
    """Go on there as `surefoot train` does, up to the first step; returns the step of the checkpoint (0: none)."""
    folder = RunFolder(place / "run")
    args = SFTConfig(**run.options | {"output_dir": str(folder.path), "save_total_limit": 2})
    saver = Saver(folder, limit=2, memory_left=lambda: 1 << 40)
    committed = run.trace.committed(operations)
    if folder.ended() is not None:
        assert state_hashes(folder.path, LAST) == state_hashes(run.whole, LAST)
        return LAST
    start = find(folder, args, "auto", run.content, saver)
    assert not start.damaged
    sound = {step: verify(path) for step, path in numbered(folder.checkpoints)}
    for step, manifest in sound.items():
        assert all(manifest.files[n] == run.saved[step][n] for n in manifest.files if n != "state.json")
        assert state_of(folder.checkpoints / f"step-{step:08d}")["progress"]["step"] == step
    assert len(sound) >= min(2, len(set(committed)))
    if start.checkpoint is None:
        assert not committed and not sound
        return 0
    progress = progress_of(start.checkpoint)
    assert progress.step == max(sound) >= max(committed, default=0)
    saver.begin(0)
    assert not list(folder.checkpoints.glob(".step-*"))
    folder.go_back(progress.step, progress.events_size)
    steps = [event["step"] for event in events(folder.path) if event["type"] == "step"]
    assert steps == list(range(1, progress.step + 1))
    assert folder.config()["hashes"] == run.content["hashes"]
    return progress.step


def hold(
    run: Recorded, zygote: Zygote, tmp_path: Path, path: Path, *, first: int = 0, every: int = 1, sampled: int
) -> set[int]:
    """Every state (or every so many) can be gone on from; a sample of them to the end. Returns the steps that were
    gone on from."""
    found, all_states = [], []
    sync = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # this disk does not matter
        for operations, way, tree in islice(states(run.trace, first), 0, None, every):
            place = tmp_path / "state"
            put(tree, place)
            try:
                with RunFolder(place / "run").locked():
                    found.append(goes_on(run, operations, place))
            except BaseException as error:
                done = run.trace.operations[max(0, operations - 3) : operations]
                said = [{key: value for key, value in one.items() if key != "data"} for one in done]
                raise AssertionError(f"{way} after {operations} operations, the last {said}") from error
            finally:
                shutil.rmtree(place)
            all_states.append((operations, way, tree))
    assert os.fsync is sync
    chance = random.Random(3)
    for number, (operations, way, tree) in enumerate(chance.sample(all_states, sampled)):
        place = tmp_path / f"sample-{number}"
        put(tree, place)
        again = zygote.run(argv(path, place), tmp_path)
        said = again.wait(), again.err
        if said[0] == 2 and "holds a run that finished" in said[1]:
            pass  # it had come to its end
        else:
            assert said[0] == 0, (way, operations, said)
        compared(place / "run", run.whole)
    return set(found)


def compared(run: Path, whole: Path) -> None:
    records = [event for event in clock_free(events(run)) if event["type"] != "alert"]
    assert records == clock_free(events(whole))
    assert state_hashes(run, LAST) == state_hashes(whole, LAST)
    assert not list((run / "checkpoints").glob(".step-*"))


def test_power_fails_after_any_operation_of_a_run(
    zygote: Zygote, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    path, whole = undisturbed
    place, log = tmp_path / "place", tmp_path / "log"
    place.mkdir()
    done = zygote.run(
        argv(path, place), tmp_path, patch=RECORD, patch_args={"root": str(place), "log": str(log)}
    )
    assert done.wait() == 0, done.err
    run = recorded(path, whole, log)
    kinds = {operation["op"] for operation in run.trace.operations}
    assert kinds >= {
        "mkdir",
        "create",
        "write",
        "sync",
        "sync_folder",
        "rename",
        "unlink",
        "rmdir",
        "committed",
    }
    # The record is whole: replayed, it is what there is.
    assert run.trace.after(len(run.trace.operations), everything) == tree_of(place)
    assert hold(run, zygote, tmp_path, path, sampled=12) == {0, 2, 4, 6}


@pytest.mark.parametrize("killed", [["rename", "step-00000004"], ["rename", ".step-00000002.removed-0"]])
def test_power_fails_in_a_run_that_went_on_after_a_kill(
    killed: list[str], zygote: Zygote, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Killed between a rename and its sync: what the next process finds is not yet what the disk holds."""
    path, whole = undisturbed
    place, logs = tmp_path / "place", [tmp_path / "log-1", tmp_path / "log-2"]
    place.mkdir()
    first = {"root": str(place), "log": str(logs[0]), "kill_after": killed}
    assert zygote.run(argv(path, place), tmp_path, patch=RECORD, patch_args=first).wait() == -9
    assert Trace(logs[0]).after(1 << 30, everything) == tree_of(place)
    second = {"root": str(place), "log": str(logs[1])}
    done = zygote.run(argv(path, place), tmp_path, patch=RECORD, patch_args=second)
    assert done.wait() == 0, done.err
    run = recorded(path, whole, *logs)
    assert run.trace.after(len(run.trace.operations), everything) == tree_of(place)
    first_ones = len(Trace(logs[0]).operations)
    found = hold(run, zygote, tmp_path, path, first=first_ones, every=2, sampled=2)
    assert {6} <= found <= {2, 4, 6}
