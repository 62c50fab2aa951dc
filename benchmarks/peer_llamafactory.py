"""Train with LLaMA-Factory as a specification says, and write down what it did (see `peer.py`).

It gets the token ids and labels as a data set it has tokenised before (`tokenized_path`). Settings: micro_batch
(rows), attention (sdpa or eager), gradient_checkpointing.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peer import Spec, accumulation, answer, clock, curves
from datasets import Dataset, DatasetDict


def deaf() -> None:
    """Let LLaMA-Factory start where torchaudio's wheel expects CUDA: it imports it first thing, for audio only."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        absent = ModuleType("torchaudio")
        absent.__spec__ = ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = absent


def train(spec: Spec) -> dict[str, Any]:
    """Write the rows as it wants them, train, and return what happened."""
    deaf()
    from llamafactory.train.tuner import run_exp

    folder, settings, watch = Path(spec["output_dir"]), spec["settings"], clock(spec["stop_after"])
    micro_batch, steps = accumulation(spec)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in spec["rows"]]
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "tokens")
    lora = spec["lora_r"]
    adapter = {"lora_rank": lora, "lora_alpha": 2 * lora, "lora_dropout": 0.0, "lora_target": "all"}
    run_exp(
        {
            "model_name_or_path": spec["model"],
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora" if lora else "full",
            **(adapter if lora else {}),
            "dataset": "tokens",
            "tokenized_path": str(folder / "tokens"),
            "template": "empty",
            "cutoff_len": max(len(row["input_ids"]) for row in spec["rows"]) + 8,
            "output_dir": str(folder / "out"),
            "flash_attn": "disabled" if settings["attention"] == "eager" else settings["attention"],
            "disable_gradient_checkpointing": not settings["gradient_checkpointing"],
            "disable_shuffling": True,
            "per_device_train_batch_size": micro_batch,
            "gradient_accumulation_steps": steps,
            "max_steps": spec["steps"],
            "learning_rate": spec["learning_rate"],
            "lr_scheduler_type": "linear",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "optim": "adamw_torch_fused",
            "seed": spec["seed"],
            "bf16": spec["precision"] == "bf16",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": spec["device"] == "cpu",
        },
        callbacks=[watch],
    )
    return {**curves(watch), "rows": spec["rows"]}


if __name__ == "__main__":
    answer(train, ("transformers", "llamafactory", "accelerate", "peft"))
