"""Fault 27: the same folder with other options is an error that names each; what only looks at a run may change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from surefoot.config import SFTConfig
from surefoot.runfolder import RunFolder
from surefoot.train.identity import (
    DECIDING,
    HASHED,
    JUDGING,
    LOOKING,
    ROUNDING,
    Difference,
    compare,
    identity,
)
from surefoot.train.resume import rows_of_step
from tests.conftest import write_rows
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.crashes import crashed, outcome, tree

REFUSED = (
    *("trust_remote_code", "eos_token", "add_special_tokens", "precision"),
    *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("dataset_config", "dataset_train_split", "dataset_streaming", "columns", "dataset_text_field"),
    *("completion_only_loss", "last_turn_only", "max_length", "overlength", "on_bad_row"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "optim", "optim_args"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("train_sampling_strategy", "seed", "load_best_model_at_end", "early_stopping_patience"),
)
"""With another value it is another run."""


def test_every_option_is_of_one_kind() -> None:
    """A new option fails here until somebody has decided what a change of it means to a run that goes on."""
    kinds = (LOOKING, HASHED, JUDGING, ROUNDING, REFUSED)
    named = [name for kind in kinds for name in kind]
    assert sorted(named) == sorted(SFTConfig.model_fields)
    assert set(DECIDING) <= set(REFUSED)


def described(**options: Any) -> dict[str, Any]:
    """run.json of a run, as far as it tells which run it is."""
    config = SFTConfig("run", eval_strategy="epoch", eval_steps=5).to_dict() | options
    return {
        "config": config,
        "hashes": dict.fromkeys(("base_model", "chat_template", "tokenizer", "model_config"), "0" * 64),
        "data": {name: {"examples": "1" * 64, "fingerprint": "2" * 64} for name in ("train", "eval")},
        "machine": {"device": "cpu", "threads": 1, "ranks": 1, "sharded": False},
        "model": {"products": "float32"},
        "versions": {"torch": "2"},
        "total_steps": 9,
        "step_rows": 8,
    }


def other(value: Any) -> Any:
    """Not what it was."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
    return "x"


@pytest.mark.parametrize("name", SFTConfig.model_fields)
def test_each_option(name: str) -> None:
    before = described()
    after = described(**{name: other(before["config"][name])})
    found = compare(identity(before), identity(after))
    line = f"{name}: {before['config'][name]!r} then, {after['config'][name]!r} now"
    if name in REFUSED:
        assert found.refused == (line,) and not found.rounding
    elif name in ROUNDING:
        assert found.rounding == (line,) and not found.refused
    else:
        assert not found.refused and not found.rounding


@pytest.mark.parametrize("name", JUDGING)
def test_what_judges_counts_where_it_decides(name: str) -> None:
    before = described(early_stopping_patience=3)
    after = described(early_stopping_patience=3, **{name: other(before["config"][name])})
    line = f"{name}: {before['config'][name]!r} then, {after['config'][name]!r} now"
    assert compare(identity(before), identity(after)).refused == (line,)


def test_where_a_log_entry_brings_an_evaluation_that_decides_its_interval_counts() -> None:
    options: dict[str, Any] = {"eval_steps": None, "early_stopping_patience": 3, "eval_strategy": "steps"}
    found = compare(identity(described(**options)), identity(described(**options, logging_steps=4)))
    assert found.refused == ("eval_steps: 10.0 then, 4 now",)


def test_other_ranks_only_round_otherwise() -> None:
    after = described()
    after["machine"] |= {"ranks": 4, "sharded": True}
    found = compare(identity(described()), identity(after))
    assert found.rounding == ("ranks: 1 then, 4 now", "sharded: False then, True now")
    assert found.refused == ()


def as_one_process_wrote_it(content: dict[str, Any]) -> dict[str, Any]:
    """The run.json of a version that knew no ranks."""
    old = {key: value for key, value in content.items() if key != "step_rows"}
    new = ("shard", "ddp_timeout", "torch_compile", "activation_offloading")
    old["config"] = {key: value for key, value in content["config"].items() if key not in new}
    old["machine"] = {key: content["machine"][key] for key in ("device", "threads")}
    return old


def test_a_run_of_before_there_were_ranks_had_the_rows_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    now = described(**given) | {"step_rows": 6}
    old = as_one_process_wrote_it(now)
    for then in (identity(old), {key: value for key, value in identity(old).items() if key != "step_rows"}):
        assert compare(then, identity(now)) == Difference((), ())
        assert compare(then, identity(now | {"step_rows": 12})).refused == (
            "the rows of a step: 6 then, 12 now",
        )
    del old["config"]["gradient_accumulation_steps"]
    refused = compare(identity(old), identity(now)).refused
    assert refused == ("gradient_accumulation_steps: 1 then, 3 now",)

    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.events_file.write_text('{"type": "step", "step": 1}\n', encoding="utf-8")
    run.write_config(as_one_process_wrote_it(now))
    monkeypatch.setattr("surefoot.train.resume.ranks", lambda: 4)
    args = SFTConfig(run.path, **given)
    assert rows_of_step(run, args, "auto") == 6
    assert rows_of_step(run, args.model_copy(update={"gradient_accumulation_steps": 2}), "auto") == 16
    for broken in ({}, {"config": 3}, {"config": {}, "step_rows": None}, {"config": None, "step_rows": 6}):
        run.write_config(broken)
        assert rows_of_step(run, args, "auto") == 24


def test_an_option_that_is_new_was_as_it_is_by_default() -> None:
    before, after = identity(described()), identity(described())
    del before["config"]["overlength"]
    assert compare(before, after).refused == ()
    after["config"]["overlength"] = "cut"
    assert compare(before, after).refused == ("overlength: 'drop' then, 'cut' now",)


@pytest.fixture
def whole(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> Path:
    run = tmp_path / "whole"
    done = zygote.run(["train", recipe(output_dir=str(run), lora_r=4, use_peft=True)], tmp_path)
    assert done.wait() == 0, done.err
    return run


def test_another_run_is_refused_with_all_differences(
    zygote: Zygote, recipe: Recipe, whole: Path, tmp_path: Path
) -> None:
    run = crashed(whole, tmp_path / "run", 6)
    before = tree(run)
    options: dict[str, Any] = {"use_peft": True, "lora_r": 4}
    done = zygote.run(["train", recipe(**options, learning_rate=0.02, seed=8)], tmp_path)
    assert (done.wait(), done.out) == (2, "")
    message = done.err.partition("surefoot: ")[2]
    assert message == (
        f"{run}/checkpoints/step-00000006 is of another run than the one asked for:\n"
        "  learning_rate: 0.01 then, 0.02 now\n"
        "  seed: 7 then, 8 now\n"
        "Change that back, name another output_dir, or start over in this one with overwrite_output_dir=true\n"
    )
    assert tree(run) == before
    shutil.rmtree(run / "checkpoints")  # stopped before its first checkpoint
    (run / "checkpoints").mkdir()
    before = tree(run)
    done = zygote.run(["train", recipe(**options, max_steps=13)], tmp_path)
    assert done.wait() == 2
    assert "max_steps: 12 then, 13 now" in done.err and "Traceback" not in done.err
    assert tree(run) == before
    content = json.loads((run / "run.json").read_text("utf-8"))
    (run / "run.json").write_text(json.dumps(as_one_process_wrote_it(content)), encoding="utf-8")
    done = zygote.run(["train", recipe(**options)], tmp_path)
    assert done.wait() == 0, done.err
    assert "not bitwise" not in done.err and losses(run) == losses(whole)


def test_what_only_looks_may_change_and_what_is_hashed_may_move(
    zygote: Zygote, recipe: Recipe, whole: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    run = crashed(whole, elsewhere / "moved", 6)
    shutil.copytree(tiny_folder, elsewhere / "model")
    shutil.copy(tmp_path / "rows.jsonl", elsewhere / "same.jsonl")
    held_out = write_rows(elsewhere / "held-out.jsonl", [{"prompt": "q", "completion": "a"}])
    changed: dict[str, Any] = {
        "output_dir": str(run), "model_name_or_path": str(elsewhere / "model"),
        "dataset_name": str(elsewhere / "same.jsonl"), "logging_steps": 5, "logging_first_step": True,
        "save_steps": 4, "save_total_limit": 2, "slides": [8], "slide_mountain": "none", "tensors_every": 3,
        "watch": [{"prompt": "How?", "completion": "Well"}], "watch_steps": 2, "run_name": "other",
        "eval_dataset_name": str(held_out), "eval_strategy": "steps", "eval_steps": 5,
        "resume_from_checkpoint": True,
    }  # fmt: skip
    done = zygote.run(["train", recipe(**changed, lora_r=4, use_peft=True)], tmp_path)
    assert done.wait() == 0, done.err
    assert "not bitwise" not in done.err
    assert "not bitwise" not in (run / "run.json").read_text("utf-8")
    assert outcome(run, 12)["hashes"] == outcome(whole, 12)["hashes"]
    assert losses(run) == losses(whole)
    kinds = {event["type"] for event in events(run) if event["step"] > 6}
    assert {"eval", "watch", "slide", "tensors"} <= kinds


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in events(run) if event["type"] == "step"]
