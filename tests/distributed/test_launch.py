"""Runs on 1, 2 and 4 processes are the same run, by whichever launcher; and what becomes of those that fail."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import QUESTIONS
from tests.distributed.launched import ROWS, alike, at_step, resumed, run, start, write_recipe
from tests.faults.children import events, state_hashes

WATCH = [{"prompt": QUESTIONS[0][0], "completion": QUESTIONS[0][1][:3], "alternatives": ["Ro"]}]
SLOWLY = {"SUREFOOT_TEST_PATCH": "tests.distributed.patches:slow_steps"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A recipe with everything that a run looks at, run by one process."""
    place = tmp_path_factory.mktemp("launched")
    write_recipe(
        place,
        tiny_folder,
        eval_dataset_name="rows.jsonl",
        eval_strategy="steps",
        eval_steps=4,
        eval_samples=2,
        eval_exact_match=True,
        max_new_tokens=6,
        watch=WATCH,
        slides=[5],
        load_best_model_at_end=True,
    )
    run(place, "recipe.yaml", "--output_dir", "one")
    return place


@pytest.mark.parametrize(
    ("count", "shard", "by"),
    [(2, "none", "nproc"), (2, "full", "torchrun"), (4, "none", "torchrun"), (4, "full", "nproc")],
)
def test_any_number_of_processes_train_the_same(place: Path, count: int, shard: str, by: str) -> None:
    name = f"{shard}-{count}"
    more = ["--output_dir", name, "--shard", shard, "--per_device_train_batch_size", 4 // count]
    if by == "nproc":
        run(place, "recipe.yaml", *more, "--nproc", count)
    else:
        run(place, "recipe.yaml", *more, launcher=("--standalone", "--nproc-per-node", str(count)))
    alike(place / "one", place / name, 2e-4)
    one, other = (AutoModelForCausalLM.from_pretrained(place / part / "model") for part in ("one", name))
    for (key, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")
    slides = [json.loads((place / p / "slides/step-00000005/slide.json").read_text()) for p in ("one", name)]
    for key in ("loss_before", "loss_after", "promised", "obtained"):
        assert slides[0][key] == pytest.approx(slides[1][key], rel=1e-3)
    assert slides[0]["backward"]["grad_norm"] == pytest.approx(slides[1]["backward"]["grad_norm"], rel=1e-4)


def test_a_user_error_is_said_once_and_not_tried_again(place: Path) -> None:
    said = run(place, "recipe.yaml", "--output_dir", "bad", "--nproc", 2, "--max_length", 3, status=2).said
    assert said.count("surefoot:") == 1 and "max_length" in said and "Traceback" not in said
    said = run(place, "recipe.yaml", "--output_dir", "one", "--nproc", 2, status=2).said
    assert said.count("holds a run that finished") == 1


# Faults ------------------------------------------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path, tiny_folder: Path) -> Path:
    write_recipe(tmp_path, tiny_folder, per_device_train_batch_size=2, tensors_every=0, shard="full")
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The run of two processes that the others are to equal bit for bit."""
    place = tmp_path_factory.mktemp("undisturbed")
    write_recipe(place, tiny_folder, per_device_train_batch_size=2, tensors_every=0, shard="full")
    run(place, "recipe.yaml", "--output_dir", "run", "--nproc", 2)
    return place / "run"


def same_result(one: Path, other: Path) -> None:
    files = sorted(path.name for path in (one / "model").glob("*.safetensors"))
    assert files == sorted(path.name for path in (other / "model").glob("*.safetensors"))
    for name in files:
        a, b = load_file(one / "model" / name), load_file(other / "model" / name)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("by", ["nproc", "torchrun"])
def test_19_a_rank_is_killed_in_step_7(slow: Path, undisturbed: Path, by: str) -> None:
    """It is named, all start again by themselves from the last commit, and the result is the same to the bit."""
    launcher = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "2") if by == "torchrun" else ()
    more = () if launcher else ("--nproc", 2)
    launch = start(slow, "recipe.yaml", "--output_dir", "run", *more, launcher=launcher, env=SLOWLY)
    launch.until(lambda: at_step(slow / "run", 6))
    killed = launch.ranks()[1]
    os.kill(killed, signal.SIGKILL)
    assert launch.wait() == 0, launch.said
    if by == "nproc":
        assert f"rank 1 (process {killed}) was killed by SIGKILL" in launch.said
        assert "starting all 2 processes again" in launch.said
    assert resumed(slow / "run") in ([3], [6])
    alike(undisturbed, slow / "run", 0.0)
    same_result(undisturbed, slow / "run")


def test_21_a_rank_that_is_frozen_is_named(slow: Path, undisturbed: Path) -> None:
    launch = start(
        slow, "recipe.yaml", "--output_dir", "run", "--nproc", 2, "--ddp_timeout", 4, "--max_restarts", 1,
        env=SLOWLY | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"},
    )  # fmt: skip
    launch.until(lambda: at_step(slow / "run", 6))
    frozen = launch.ranks()[1]
    os.kill(frozen, signal.SIGSTOP)
    assert launch.wait() == 0, launch.said
    assert f"rank 1 (process {frozen}" in launch.said and "has stopped answering" in launch.said
    same_result(undisturbed, slow / "run")


def test_22_two_then_one_then_two(slow: Path) -> None:
    """The same rows in each step, whatever the number of processes that go on with it."""
    argv = ("recipe.yaml", "--output_dir", "run")
    for count, step in ((2, 4), (1, 8)):
        launch = start(slow, *argv, *(("--nproc", count) if count > 1 else ()), env=SLOWLY)
        launch.until(lambda step=step: at_step(slow / "run", step))
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait() == 143, launch.said
    run(slow, *argv, "--nproc", 2)
    rows = [
        sorted(e[0] for e in event["examples"]) for event in events(slow / "run") if event["type"] == "step"
    ]
    assert len(rows) == 12 and all(len(one) == 4 for one in rows)
    run(slow, "recipe.yaml", "--output_dir", "whole", "--nproc", 2)
    alike(slow / "whole", slow / "run", 1e-3)
    went_on = json.loads((slow / "run" / "run.json").read_text())["resumed"]
    assert [("ranks: 2 then, 1 now" in str(one), "ranks: 1 then, 2 now" in str(one)) for one in went_on] == [
        (True, False),
        (False, True),
    ]


def test_23_ranks_that_disagree(slow: Path) -> None:
    said = run(
        slow, "recipe.yaml", "--output_dir", "run", status=1,
        launcher=("--standalone", "--nproc-per-node", "2"),
        env={"SUREFOOT_TEST_PATCH": "tests.distributed.patches:other_seed"},
    ).said  # fmt: skip
    assert said.count("the ranks do not agree") == 1
    assert "config.seed: 7 on rank 0" in said and "8 on rank 1" in said
    assert not (slow / "run" / "events.jsonl").exists() or not events(slow / "run")


def test_14_sigterm_to_the_launcher_saves(slow: Path) -> None:
    launch = start(slow, "recipe.yaml", "--output_dir", "run", "--nproc", 2, env=SLOWLY)
    launch.until(lambda: at_step(slow / "run", 4))
    launch.process.send_signal(signal.SIGTERM)
    assert launch.wait() == 143, launch.said
    last = [event for event in events(slow / "run") if event["type"] == "end"][-1]
    assert last["reason"] == "interrupted"
    assert (slow / "run" / "checkpoints" / f"step-{last['step']:08d}" / "manifest.json").is_file()
    assert launch.said.count("Go on with:") == 1


def test_the_python_interface_under_torchrun(tmp_path: Path, tiny_folder: Path, undisturbed: Path) -> None:
    script = tmp_path / "script.py"
    write_recipe(tmp_path, tiny_folder)
    script.write_text(
        "from surefoot import SFTConfig, SFTTrainer\n"
        f"rows = {ROWS!r}\n"
        f"args = SFTConfig('run', use_cpu=True, precision='fp32', max_steps=12, per_device_train_batch_size=2,\n"
        "    learning_rate=1e-2, lr_scheduler_type='cosine', logging_steps=2, save_steps=3, tensors_every=0,\n"
        "    disable_tqdm=True, seed=7, shard='none')\n"
        f"trainer = SFTTrainer({str(tiny_folder)!r}, args, train_dataset=rows)\n"
        "print(sorted(trainer.train()), trainer.state.is_world_process_zero)\n"
    )
    from tests.distributed.launched import script as launched

    said = launched(tmp_path, script, 2).said
    assert "train_loss" in said and "True" in said and "False" in said
    alike(undisturbed, tmp_path / "run", 1e-3)
    assert state_hashes(tmp_path / "run", 12)["model"]
