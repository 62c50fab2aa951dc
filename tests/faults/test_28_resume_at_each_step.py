"""Fault 28: stopped right after step k, for every k, the same command ends with the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from tests import templates, toys
from tests.conftest import write_rows
from tests.faults.children import Child, Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.crashes import checkpoint, crashed, outcome

STEPS = 30
LORA = {"use_peft": True, "lora_r": 2, "lora_dropout": 0.3, "learning_rate": 0.05}
FULL = {"learning_rate": 0.02, "optim": "adamw_torch"}


def conversations(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Chats of two or three turns, which begin alike: their examples share prefixes."""
    return [
        {
            "messages": [{"role": "system", "content": "Count on."}]
            + [
                {"role": role, "content": text}
                for turn in range(2 + number % 2)
                for role, text in (("user", f"{turn + 1}?"), ("assistant", "x" * (1 + (number + turn) % 5)))
            ]
        }
        for number in range(first, first + count)
    ]


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    """A tiny model that has dropout of its own."""
    tokenizer = toys.byte_level(template=templates.CHATML)
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128, resid_pdrop=0.2, attn_pdrop=0.0,
        embd_pdrop=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    tf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize("kind", ["lora with dropout", "all weights of a model with dropout"])
def test_from_every_step(
    kind: str, zygote: Zygote, recipe: Recipe, gpt2_folder: Path, tmp_path: Path
) -> None:
    options = LORA if kind.startswith("lora") else {**FULL, "model_name_or_path": str(gpt2_folder)}
    options |= {
        "dataset_name": str(write_rows(tmp_path / "chats.jsonl", conversations(9))),
        "eval_dataset_name": str(write_rows(tmp_path / "held-out.jsonl", conversations(3, first=2))),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,  # two rows a step, five steps an epoch, the last of one row
        "micro_batch_tokens": 100,
        "max_steps": STEPS,
        "warmup_steps": 4,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "steps",
        "eval_steps": 7,
        "load_best_model_at_end": True,
        "greater_is_better": True,  # so that the end is not the best
        "early_stopping_patience": 4,
        "logging_steps": 4,
        "watch": [{"prompt": "1?", "completion": "x"}],
        "slide_every": 9,
        "slide_mountain": "none",
        "tensors_every": 5,
        "save_steps": 1,
    }

    def argv(run: Path) -> list[Any]:
        return ["train", recipe(f"{run.name}.yaml", output_dir=str(run), **options)]

    whole = tmp_path / "whole"
    assert (done := zygote.run(argv(whole), tmp_path)).wait() == 0, done.err
    want = outcome(whole, STEPS)
    is_what_it_should_be(whole, want, lora="use_peft" in options)

    going: list[tuple[int, Path, Child]] = []
    every = (
        1 if "use_peft" in options else 3
    )  # the first, with all the rest, shows each; 7 and 28 are evaluations
    for step in range(1, STEPS + 1, every):
        run = crashed(whole, tmp_path / f"after-{step}", step)
        going.append((step, run, zygote.start(argv(run), tmp_path)))
        if len(going) == 2:
            ends_alike(*going.pop(0), want)
    for one in going:
        ends_alike(*one, want)


def ends_alike(step: int, run: Path, child: Child, want: dict[str, Any]) -> None:
    assert child.wait() == 0, (step, child.err)
    found = outcome(run, STEPS)
    for part, content in want.items():
        assert found[part] == content, (step, part)
    resumed = json.loads((run / "run.json").read_text("utf-8"))["resumed"]
    assert [time["step"] for time in resumed] == [step]
    assert resumed[0]["notes"] == []
    shutil.rmtree(run)


def is_what_it_should_be(run: Path, found: dict[str, Any], *, lora: bool) -> None:
    """The run has all that resuming may lose."""
    told = events(run)
    steps = [event for event in told if event["type"] == "step"]
    assert len(steps) == STEPS
    assert sum(step["micro_batches"] > 1 for step in steps) > STEPS / 2
    assert all(step["slots"] < step["tokens"] for step in steps) or not lora
    assert len(found["slides"]) == STEPS // 9
    assert [event["step"] for event in told if event["type"] == "eval"] == [7, 14, 21, 28]
    kinds = {event["type"] for event in told}
    assert {"start", "step", "eval", "watch", "slide", "tensors", "checkpoint", "end"} <= kinds
    progress = found["state"]["progress"]
    assert progress["best_step"] in (7, 14, 21)
    assert progress["evaluations_without_better"] > 0
    assert json.loads(checkpoint(run, 6, "state.json").read_text())["progress"]["unlogged"]["steps"] == 2
