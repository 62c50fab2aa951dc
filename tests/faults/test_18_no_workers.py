"""Fault 18: a loader worker killed. It cannot occur, as there is none.

Rows become tokens before the first step, in the command's own process (and are memory-mapped when they are many);
a step then only looks up the tokens of its rows. There is no worker that could die with rows in its hands, and no
queue that could wait for one for ever. What is shown here is that: a training starts no process, of any kind,
whatever is asked for that loaders of other trainers use workers for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.disturbed import train

HOOK = "tests.faults.patches_folder:no_processes"


def test_a_training_starts_no_process(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    recipe()
    options = {"eval_strategy": "steps", "eval_steps": 6, "eval_dataset_name": str(tmp_path / "rows.jsonl")}
    train(zygote, recipe, tmp_path, options=options, patch=HOOK)
    assert events(tmp_path / "run")[-1]["reason"] == "finished"
    assert (tmp_path / "processes").read_text() == ""


def test_workers_are_not_to_be_had(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Who asks for some, as in a recipe of another trainer, is told that there is nothing for them to do."""
    child = zygote.run(["train", recipe(), "--dataloader_num_workers", "4"], tmp_path, patch=HOOK)
    assert child.wait() == 0, child.err
    assert "dataloader_num_workers: rows are tokenised before step 1 and sliced from memory" in child.err
    assert (tmp_path / "processes").read_text() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who has children on Linux only")
def test_nor_does_a_library_in_its_own_way(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """What is started without Python's knowing has this process for its parent all the same."""
    argv = ["train", recipe()]
    child = zygote.start(
        argv, tmp_path, patch="tests.faults.patches_signals:wait_in_step", patch_args={"step": 5}
    )
    child.until((tmp_path / "waiting").exists)
    children = [(thread / "children") for thread in Path(f"/proc/{child.pid}/task").iterdir()]
    assert children and [path.read_text() for path in children if path.exists()] == [""] * len(children)
    (tmp_path / "go").touch()
    assert child.wait() == 0, child.err
