"""surefoot train: recipes and flags, what it writes and prints, and going on after Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from surefoot import SFTConfig
from tests.conftest import QUESTIONS, Surefoot, write_rows

QUICK = ("--use_cpu", "--save_strategy", "no", "--disable_tqdm", "--precision", "fp32")


@pytest.fixture
def recipe(tiny_folder: Path, rows_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model_name_or_path: {tiny_folder}\ndataset_name: {rows_file}\nmax_steps: 5\nlearning_rate: 1e-2\n"
        f"output_dir: run\nlogging_steps: 2\nseed: 7\n"
    )
    return path


def config_of(run: Path) -> dict[str, object]:
    return json.loads((run / "run.json").read_text())["config"]


def test_train_writes_the_run_and_tells_where(recipe: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    said = surefoot("train", recipe, *QUICK)
    assert said.status == 0
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock", "checkpoints", "events.jsonl", "model", "run.json",
    ]  # fmt: skip
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["type"] == "step"] == [1, 2, 3, 4, 5]
    assert (events[-1]["type"], events[-1]["reason"]) == ("end", "finished")
    assert (run / "model" / "model.safetensors").is_file()
    first, *_, model, after = said.out.splitlines()
    assert first.startswith("5 steps in ") and f"mean loss {events[-1]['train_loss']:.4f}" in first
    assert model == "model: run/model"
    assert after == "next:  surefoot chat run   surefoot report run   surefoot compare run --data ..."
    assert "4 rows" in said.err


def test_flags_override_the_recipe(recipe: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    flags = ("--max-steps", 2, "--seed=8", "--output_dir", "other", "--columns", "messages=messages")
    assert surefoot("train", "--use_cpu", recipe, *QUICK, *flags).status == 0
    args = config_of(tmp_path / "other")
    assert (args["max_steps"], args["seed"], args["learning_rate"]) == (2, 8, 1e-2)
    assert (args["columns"], args["precision"]) == ({"messages": "messages"}, "fp32")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("in_recipe", "flags", "want"),
    [
        ("precision: bf16", ["--bf16", "false"], "fp32"),
        ("bf16: true", ["--precision", "fp32"], "fp32"),
        ("bf16: true", ["--bf16=false"], "fp32"),
        ("bf16: true", [], "bf16"),
    ],
)
def test_flags_override_the_recipes_precision_by_any_name(
    in_recipe: str, flags: list[str], want: str, surefoot: Surefoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen: list[SFTConfig] = []
    monkeypatch.setattr("surefoot.commands.train._train", lambda args, *_, **__: seen.append(args) or 0)
    (tmp_path / "r.yaml").write_text(in_recipe + "\n")
    assert surefoot("train", "r.yaml", *flags).status == 0
    assert seen[0].precision == want


def test_json_is_one_object_and_nothing_else(recipe: Path, surefoot: Surefoot, rows_file: Path) -> None:
    held_out = ("--eval_dataset_name", rows_file, "--eval_strategy", "steps", "--eval_steps", 5)
    said = surefoot("train", recipe, *QUICK, *held_out, "--json")
    assert said.status == 0
    assert set(said.json) == {
        "output_dir", "steps",
        "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss",
        "eval_loss", "eval_perplexity", "eval_token_accuracy",
    }  # fmt: skip
    assert (said.json["output_dir"], said.json["steps"]) == ("run", 5)


def test_superseded_options_are_noted_and_refused_ones_may_be_off(
    recipe: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        said = surefoot("train", recipe, *QUICK, "--packing", "--fp16", "false", "--max_steps", "1")
    assert said.status == 0
    assert said.err.count("note: options with nothing left to decide:\n  packing: ") == 1


def test_lora_by_flags(recipe: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    lora = ("--use_peft", "--lora_r", 2, "--lora_target_modules")
    for number, modules in enumerate(("all-linear", "q_proj,v_proj", r".*\.(q|k)_proj")):
        flags = ("--max_steps", 1, "--output_dir", number)
        assert surefoot("train", recipe, *QUICK, *lora, modules, *flags).status == 0
    adapted = [
        json.loads((tmp_path / run / "model" / "adapter_config.json").read_text())["target_modules"]
        for run in "012"
    ]
    assert {name.rpartition(".")[2] for name in adapted[0]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert sorted(adapted[1]) == ["q_proj", "v_proj"]
    assert adapted[2] == r".*\.(q|k)_proj"


def test_a_second_run_does_not_overwrite_the_first(recipe: Path, surefoot: Surefoot, tmp_path: Path) -> None:
    assert surefoot("train", recipe, *QUICK).status == 0
    before = (tmp_path / "run" / "events.jsonl").read_bytes()
    said = surefoot("train", recipe, *QUICK)
    assert said.status == 2
    assert "output_dir: run holds a run that finished after step 5" in said.err
    assert "overwrite_output_dir=true" in said.err
    assert (tmp_path / "run" / "events.jsonl").read_bytes() == before
    assert surefoot("train", recipe, *QUICK, "--overwrite_output_dir", "--max_steps", 2).status == 0
    assert config_of(tmp_path / "run")["max_steps"] == 2


def test_what_is_missing_is_told_before_anything_is_trained(
    recipe: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    for flags, said in (
        (["--dataset_name", "train.jsonl"], "train.jsonl: no such file"),
        (["--eval_dataset_name", "held.jsonl"], "held.jsonl: no such file"),
        (["--model_name_or_path", "./tiny"], "./tiny: no such file or folder"),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint: run has no run to go on with"),
        (["--eval_strategy", "epoch"], "eval_strategy=epoch needs held-out rows: eval_dataset_name"),
        (["--eos_token", "<none>"], "eos_token: the tokenizer does not know '<none>'."),
        (["--chat_template_path", "x.jinja"], "chat_template_path: x.jinja: no such file"),
        (["--max_length", "999"], "max_length 999 is more than the model's 128 positions"),
    ):
        found = surefoot("train", recipe, *QUICK, *flags)
        assert found.status == 2
        assert said in found.err, found.err
        assert found.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_bad_line_of_the_data_is_told_by_its_place(
    recipe: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": p, "completion": c} for p, c in QUESTIONS])
    lines = rows.read_text().splitlines()
    lines[2] = lines[2][:-4]
    rows.write_text("\n".join(lines) + "\n")
    said = surefoot("train", recipe, *QUICK, "--dataset_name", "rows.jsonl")
    assert said.status == 2
    assert said.err.startswith("surefoot: rows.jsonl:3")
    assert "Traceback" not in said.err
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_the_command_it_tells_finishes(
    recipe: Path, surefoot: Surefoot, tmp_path: Path
) -> None:
    total = 300
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # tiny steps; threads would wait for each other
    argv = ["train", str(recipe), "--use_cpu", "--precision", "fp32", "--max_steps", str(total)]
    process = subprocess.Popen(
        [sys.executable, "-m", "surefoot", *argv],
        cwd=tmp_path,
        env=one_thread,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    events = tmp_path / "run" / "events.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (events.is_file() and '"step": 3,' in events.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    stopped, command = err.splitlines()[-2:]
    ended = json.loads(events.read_text().splitlines()[-1])
    assert (ended["type"], ended["reason"]) == ("end", "interrupted")
    assert stopped == f"stopped after step {ended['step']}; saved in run. Go on with:"
    assert (tmp_path / "run" / "checkpoints" / f"step-{ended['step']:08d}").is_dir()
    again = shlex.split(command)
    assert again == ["surefoot", *argv]
    assert surefoot(*argv, "--resume", "false").status == 2  # the run is not overwritten by mistake
    assert surefoot(*argv, "--learning_rate", "0.5").status == 2  # nor gone on with as another one
    on = [sys.executable, "-m", *again]
    assert subprocess.run(on, cwd=tmp_path, env=one_thread, timeout=60, check=False).returncode == 0
    steps = [json.loads(line) for line in events.read_text().splitlines() if '"type": "step"' in line]
    assert [step["step"] for step in steps] == list(range(1, total + 1))
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
