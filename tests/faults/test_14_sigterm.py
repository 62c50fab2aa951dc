"""Fault 14: SIGTERM in a step, in an evaluation, in a save. The run commits, exits with 143, and the same command
ends with the bits of a run that was left alone. SIGHUP the same, with 129; under nohup it is not heard."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.children import Zygote, events, last_step
from tests.faults.conftest import Recipe
from tests.faults.disturbed import LAST, same, steps_left, train

PATCHES = "tests.faults.patches_signals"
JUDGED = {
    "micro_batch_tokens": 40,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "eval_exact_match": True,
    "max_new_tokens": 4,
}


def stopped(run: Path, status: int, child: Any) -> int:
    """The step after which a run was stopped and saved, by its own account."""
    assert child.wait() == status, child.err
    assert "Traceback" not in child.err
    said = child.err[child.err.index("stopped after step") :]
    step = int(said.split()[3].rstrip(";"))
    assert f"stopped after step {step}; saved in {run}. Go on with:\n  surefoot train " in said
    assert events(run)[-1] | {"step": step, "reason": "interrupted", "type": "end"} == events(run)[-1]
    assert steps_left(run)[-1] == step
    manifest = run / "checkpoints" / f"step-{step:08d}" / "manifest.json"
    assert json.loads(manifest.read_text())["step"] == step
    assert not (run / "model").exists()
    return step


def judged(tmp_path: Path) -> dict[str, Any]:
    return {**JUDGED, "eval_dataset_name": str(tmp_path / "rows.jsonl")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_in_a_step(number: int, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:wait_in_step", patch_args={"step": 5})
    child.until((tmp_path / "waiting").exists)
    child.kill(number)
    (tmp_path / "go").touch()
    assert stopped(run, 128 + number, child) == 4  # the step in hand is left between two micro-batches
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_a_long_step_is_left_between_its_micro_batches(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    options = {"micro_batch_tokens": 1, "per_device_train_batch_size": 8}
    train(zygote, recipe, tmp_path, "whole", options)
    run, argv = tmp_path / "run", ["train", recipe(**options)]
    child = zygote.start(
        argv, tmp_path, patch=f"{PATCHES}:wait_in_step", patch_args={"step": 5, "micro_batch": 3}
    )
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert stopped(run, 143, child) == 4
    begun = (tmp_path / "micro-batches").read_text().splitlines()
    assert begun[-1] == "5.3"  # the signal came in it: none was begun after it
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


@pytest.mark.parametrize("where", ["evaluate", "answer"])
@pytest.mark.parametrize("step", [3, 6, LAST])
def test_in_an_evaluation(where: str, step: int, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """It is left at once, and done again; the last step's and a long one with written answers too."""
    recipe()
    train(zygote, recipe, tmp_path, "whole", judged(tmp_path))
    run, argv = tmp_path / "run", ["train", recipe(**judged(tmp_path))]
    child = zygote.start(
        argv, tmp_path, patch=f"{PATCHES}:wait_in_evaluation", patch_args={"step": step, "where": where}
    )
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert stopped(run, 143, child) == step
    assert not [e for e in events(run) if e["type"] == "eval" and e["step"] == step]
    assert (tmp_path / "after").read_text() == ""  # nothing more was computed for it
    state = json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    assert state["progress"]["pending"] is not None
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


@pytest.mark.parametrize("step", [6, LAST])
def test_in_a_save(step: int, zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """In the background, and in the final one: it is finished, and the run stopped after it."""
    train(zygote, recipe, tmp_path, "whole")
    run, argv = tmp_path / "run", ["train", recipe()]
    child = zygote.start(argv, tmp_path, patch=f"{PATCHES}:wait_in_save", patch_args={"step": step})
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert stopped(run, 143, child) >= step
    assert step in steps_left(run)
    again = zygote.run(argv, tmp_path)
    assert again.wait() == 0, again.err
    same(run, tmp_path / "whole")


def test_at_any_time_again_and_again(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    """Stopped wherever it happens to be, after each few steps, with evaluations and the best weights put back."""
    recipe()
    options = {**judged(tmp_path), "load_best_model_at_end": True}
    train(zygote, recipe, tmp_path, "whole", options)
    run, argv, stops = tmp_path / "run", ["train", recipe(**options)], 0
    while True:
        before = last_step(run)
        child = zygote.start(argv, tmp_path)
        while child.running and not before + 2 <= last_step(run):
            pass
        if not child.running:
            break
        child.kill(signal.SIGTERM)
        if child.wait() == 0:  # it was done before it heard
            break
        stopped(run, 143, child)
        stops += 1
        assert stops < 3 * LAST
    assert child.wait() == 0, child.err
    assert stops >= 3
    same(run, tmp_path / "whole")


def test_nohup_is_not_undone(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    child = zygote.start(["train", recipe()], tmp_path, patch=f"{PATCHES}:nohup_and_wait_in_step")
    child.until((tmp_path / "waiting").exists)
    child.kill(signal.SIGHUP)
    (tmp_path / "go").touch()
    assert child.wait() == 0, child.err
    assert events(tmp_path / "run")[-1]["reason"] == "finished"
