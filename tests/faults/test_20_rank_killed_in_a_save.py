"""Fault 20: one of two ranks killed inside a save, at the operations that matter. Unless all had written, nobody
commits; the run goes on from what was committed, on two ranks or on one."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from surefoot.cli import main
from surefoot.train.manifest import manifest_of
from tests.distributed.started import LONGEST_SECONDS, end_the_others, ended, said, start
from tests.faults.children import Zygote, clock_free, events
from tests.faults.conftest import Recipe

LAST = 3
FILE, TEXT = ["create", "write", "write", "sync", "close"], ["create", "write", "sync", "close"]
FIRST = ["make_folder", *FILE, *FILE, *TEXT, *TEXT, "sync_folder", *TEXT, "sync_folder", "rename"]
SECOND = [*FILE, *FILE, "sync_folder"]
"""What each rank does to the disk in a save."""


class Pair:
    """A run of three steps on two ranks, each step saved."""

    def __init__(self, zygote: Zygote, recipe: Recipe, place: Path) -> None:
        self.zygote, self.place = zygote, place
        self.recipe = recipe(
            per_device_train_batch_size=1, max_steps=LAST, save_steps=1, shard="full", ddp_timeout=3
        )

    def train(self, run: Path, ranks: int = 2, kill: int | None = None, **how: Any) -> list[int]:
        """The exit statuses. `kill`: the rank that is killed in the save of step 2."""
        patch = {"patch": "tests.faults.patches_ranks:at_operation_of", "patch_args": {"step": 2, **how}}
        patches = {} if kill is None else {kill: patch}
        children = start(self.zygote, ["train", self.recipe, "--output_dir", run], self.place, ranks, patches)
        if kill is not None:
            children[kill].wait(LONGEST_SECONDS)
            end_the_others(children)
        found = ended(children)
        self.said = said(children)
        return found


def goes_on_from(run: Path) -> int:
    """What `surefoot verify` says; every checkpoint must be sound."""
    with redirect_stdout(StringIO()) as out:
        assert main(["verify", str(run), "--json"]) == 0, out.getvalue()
    return json.loads(out.getvalue())["resume_from"]


def hashes(run: Path) -> dict[str, str]:
    files = manifest_of(run / "checkpoints" / f"step-{LAST:08d}").files
    return {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")}


def test_a_rank_is_killed_in_a_save(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    pair, whole, run = Pair(zygote, recipe, tmp_path), tmp_path / "whole", tmp_path / "run"
    assert pair.train(whole) == [0, 0], pair.said
    kills = [
        (1, SECOND.index("sync"), False, 1),  # its weights written, not synced
        (1, 0, False, 1),
        (1, len(SECOND) - 1, True, 1),  # all of it, but nobody was told
        (0, FIRST.index("rename"), False, 1),  # what all have written, before it is committed
        (0, FIRST.index("rename"), True, 2),  # and after
    ]
    for number, (rank, operation, after, step) in enumerate(kills):
        log = tmp_path / f"log-{number}"
        found = pair.train(run, kill=rank, number=operation, after=after, log=str(log))
        assert found[rank] == -9 and found[1 - rank] != 0, (number, found, pair.said)
        assert log.read_text().split() == (FIRST if rank == 0 else SECOND)[: operation + 1]
        assert goes_on_from(run) == step, number
        if number == 0:  # the next one has another number of ranks
            alone = shutil.copytree(run, tmp_path / "alone")
            assert pair.train(alone, ranks=1) == [0], pair.said
            assert goes_on_from(alone) == LAST
    assert pair.train(run) == [0, 0], pair.said
    assert hashes(run) == hashes(whole)
    assert not list((run / "checkpoints").glob(".*"))
    records = [event for event in clock_free(events(run)) if event["type"] != "alert"]
    assert records == clock_free(events(whole))
