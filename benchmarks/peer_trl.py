"""Train with TRL's SFTTrainer as a specification says, and write down what it did (see `peer.py`).

Rows may also be TRL's own `prompt` and `completion` messages. Settings: micro_batch (rows), and, each left to
TRL where it is absent or null: attention (sdpa, eager, flash_attention_2), padding_free, gradient_checkpointing,
liger (its kernels).
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

from benchmarks.peer import Spec, accumulation, answer, clock, curves
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

OPTIONS = {
    "padding_free": "padding_free",
    "gradient_checkpointing": "gradient_checkpointing",
    "liger": "use_liger_kernel",
}
"""Our settings that are options of TRL."""


def row(given: dict[str, Any]) -> dict[str, Any]:
    """A row in TRL's pre-tokenised form; messages as they are."""
    if "input_ids" not in given:
        return given
    mask = [int(label != -100) for label in given["labels"]]
    return {"input_ids": given["input_ids"], "completion_mask": mask}


def train(spec: Spec) -> dict[str, Any]:
    """Tokenise, train, and return what happened."""
    settings, watch = spec["settings"], clock(spec["stop_after"])
    micro_batch, steps = accumulation(spec)
    lora, cuda = spec["lora_r"], spec["device"] == "cuda"
    load: dict[str, Any] = {"dtype": "bfloat16" if lora and cuda else "float32"}
    if settings.get("attention"):
        load["attn_implementation"] = settings["attention"]
    chosen = {theirs: settings[ours] for ours, theirs in OPTIONS.items() if settings.get(ours) is not None}
    adapter = LoraConfig(r=lora, lora_alpha=2 * lora, lora_dropout=0.0, target_modules="all-linear")
    trainer = SFTTrainer(
        model=spec["model"],
        args=SFTConfig(
            output_dir=spec["output_dir"],
            model_init_kwargs=load,
            max_length=None,
            completion_only_loss=True,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=steps,
            max_steps=spec["steps"],
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="linear",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            seed=spec["seed"],
            bf16=spec["precision"] == "bf16",
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not cuda,
            **chosen,
        ),
        train_dataset=Dataset.from_list([row(given) for given in spec["rows"]]),
        peft_config=adapter if lora else None,
        callbacks=[watch],
    )
    tokens = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in trainer.train_dataset]
    trainer.train()
    return {**curves(watch), "rows": tokens}


if __name__ == "__main__":
    answer(train, ("transformers", "trl", "accelerate", "peft"))
