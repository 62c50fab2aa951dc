"""Train with TRL's SFTTrainer as a specification says, and write down what it did. Imports no surefoot.

Started by `losses.py` inside TRL's own environment:

    TRL_ENVIRONMENT/bin/python benchmarks/peer_trl.py spec.json out.json

spec.json: model (folder), rows (TRL's `prompt` and `completion` messages, or `input_ids` and
`completion_mask`), precision (bf16 or fp32), steps (the length of the learning rate's schedule), stop_after
(steps really done), rows_per_step, learning_rate, seed, output_dir.
out.json: loss, grad_norm and learning_rate of each step, the time each step ended, the token ids and labels
TRL made of the rows, threads and versions.

TRL's own settings are kept but for what the comparison fixes (see `losses.py`) and activation checkpointing,
which is off because it changes no loss and costs time.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Notes when each step ended, in seconds since 1970, and stops after `stop_after` of them."""

    def __init__(self, stop_after: int) -> None:
        self.stop_after = stop_after
        self.ended: list[float] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.ended.append(time.time())
        control.should_training_stop |= state.global_step >= self.stop_after


def train(spec: dict[str, Any]) -> dict[str, Any]:
    """Tokenise, train, and return what happened."""
    clock = Clock(spec["stop_after"])
    trainer = SFTTrainer(
        model=spec["model"],
        args=SFTConfig(
            output_dir=spec["output_dir"],
            model_init_kwargs={"dtype": "float32"},
            max_length=None,
            completion_only_loss=True,
            per_device_train_batch_size=spec["rows_per_step"],
            max_steps=spec["steps"],
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            seed=spec["seed"],
            bf16=spec["precision"] == "bf16",
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(spec["rows"]),
        callbacks=[clock],
    )
    tokens = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    names = ("torch", "transformers", "trl", "accelerate")
    return {
        "loss": [entry["loss"] for entry in steps],
        "grad_norm": [entry["grad_norm"] for entry in steps],
        "learning_rate": [entry["learning_rate"] for entry in steps],
        "ended": clock.ended,
        "rows": tokens,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


if __name__ == "__main__":
    given, wanted = map(Path, sys.argv[1:])
    wanted.write_text(json.dumps(train(json.loads(given.read_text()))))
