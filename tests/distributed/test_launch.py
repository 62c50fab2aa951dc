"""Launched by torchrun and by --nproc: what the launchers make of users' errors, signals, and ranks that die."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import write_recipe
from tests.distributed import started
from tests.distributed.compared import alike, at_step, resumed, same_result
from tests.distributed.launched import run, script, start
from tests.faults.children import Zygote, events

SLOWLY = {"SUREFOOT_TEST_PATCH": "tests.distributed.patches:slow_steps"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, zygote: Zygote) -> Path:
    """The run of two processes that the others are to equal bit for bit."""
    place = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(place, tiny_folder, dataset_name="rows.jsonl", shard="full")
    started.run(zygote, ["train", recipe], place, 2)
    return place / "run"


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    write_recipe(tmp_path, tiny_folder, dataset_name="rows.jsonl", shard="full")
    return tmp_path


def test_a_rank_is_killed_in_step_7_under_torchrun(place: Path, undisturbed: Path) -> None:
    """All start again by themselves from the last commit, and the result is the same to the bit."""
    launcher = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2")
    launch = start(place, "recipe.yaml", launcher=launcher, env=SLOWLY)
    launch.until(lambda: at_step(place / "run", 6))
    os.kill(launch.ranks()[1], signal.SIGKILL)
    assert launch.wait() == 0, launch.said
    assert resumed(place / "run") in ([3], [6])
    alike(undisturbed, place / "run", 0.0)
    same_result(undisturbed, place / "run")


def test_a_user_error_is_said_once_and_not_tried_again(place: Path) -> None:
    said = run(place, "recipe.yaml", "--nproc", 2, "--max_length", 3, status=2).said
    assert said.count("surefoot:") == 1 and "max_length" in said and "Traceback" not in said
    assert not (place / "run").exists()


@pytest.mark.slow
def test_a_rank_is_killed_in_step_7_under_nproc(place: Path, undisturbed: Path) -> None:
    launch = start(place, "recipe.yaml", "--nproc", 2, env=SLOWLY)
    launch.until(lambda: at_step(place / "run", 6))
    killed = launch.ranks()[1]
    os.kill(killed, signal.SIGKILL)
    assert launch.wait() == 0, launch.said
    assert f"rank 1 (process {killed}) was killed by SIGKILL" in launch.said
    assert "starting all 2 processes again" in launch.said
    assert resumed(place / "run") in ([3], [6])
    alike(undisturbed, place / "run", 0.0)
    same_result(undisturbed, place / "run")


@pytest.mark.slow
def test_a_rank_that_is_frozen_is_named_and_replaced(place: Path, undisturbed: Path) -> None:
    launch = start(
        place, "recipe.yaml", "--nproc", 2, "--ddp_timeout", 4, "--max_restarts", 1,
        env=SLOWLY | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
    )  # fmt: skip
    launch.until(lambda: at_step(place / "run", 6))
    frozen = launch.ranks()[1]
    os.kill(frozen, signal.SIGSTOP)
    assert launch.wait() == 0, launch.said
    assert f"rank 1 (process {frozen}" in launch.said and "has stopped answering" in launch.said
    same_result(undisturbed, place / "run")


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves(place: Path) -> None:
    launch = start(place, "recipe.yaml", "--nproc", 2, env=SLOWLY)
    launch.until(lambda: at_step(place / "run", 4))
    launch.process.send_signal(signal.SIGTERM)
    assert launch.wait() == 143, launch.said
    last = [event for event in events(place / "run") if event["type"] == "end"][-1]
    assert last["reason"] == "interrupted"
    assert (place / "run" / "checkpoints" / f"step-{last['step']:08d}" / "manifest.json").is_file()
    assert launch.said.count("Go on with:") == 1


@pytest.mark.slow
def test_four_processes_of_nproc_and_of_torchrun(place: Path, undisturbed: Path) -> None:
    """The steps of two with half as many rows each."""
    more = ("recipe.yaml", "--per_device_train_batch_size", 1)
    run(place, *more, "--output_dir", "nproc", "--nproc", 4)
    run(place, *more, "--output_dir", "torchrun", launcher=("--standalone", "--nproc-per-node", "4"))
    alike(undisturbed, place / "nproc", 2e-4)
    alike(place / "nproc", place / "torchrun", 0.0)
    said = run(place, *more, "--output_dir", "nproc", "--nproc", 4, status=2).said
    assert said.count("holds a run that finished") == 1


@pytest.mark.slow
def test_the_python_interface_under_torchrun(tmp_path: Path, tiny_folder: Path, undisturbed: Path) -> None:
    write_recipe(tmp_path, tiny_folder)
    path = tmp_path / "script.py"
    path.write_text(
        "import json\n"
        "from surefoot import SFTConfig, SFTTrainer\n"
        "rows = [json.loads(line) for line in open('rows.jsonl')]\n"
        "args = SFTConfig('run', use_cpu=True, precision='fp32', max_steps=12, per_device_train_batch_size=2,\n"
        "    learning_rate=1e-2, logging_steps=2, save_steps=3, tensors_every=0, disable_tqdm=True, seed=7,\n"
        "    shard='full')\n"
        f"trainer = SFTTrainer({str(tiny_folder)!r}, args, train_dataset=rows)\n"
        "print(json.dumps([sorted(trainer.train()), trainer.state.is_world_process_zero]))\n"
    )
    said = [json.loads(line) for line in script(tmp_path, path, 2).said.splitlines() if line.startswith("[[")]
    assert sorted(first for _, first in said) == [False, True] and all(
        "train_loss" in names for names, _ in said
    )
    losses = [
        [e["loss"] for e in events(run) if e["type"] == "step"] for run in (undisturbed, tmp_path / "run")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    same_result(undisturbed, tmp_path / "run")
