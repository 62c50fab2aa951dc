"""Train with LitGPT's full fine-tuning as a specification says, and write down what it did (see `peer.py`).

    ENVIRONMENT/bin/python -m benchmarks.peer_litgpt convert MODEL_FOLDER CHECKPOINT_FOLDER LITGPT_NAME

makes its checkpoint first. Settings: micro_batch (rows), checkpoint (that folder).

Changed so that it takes the same steps: rows in order, as token ids; a linear learning rate (its own is a cosine);
gradients clipped to norm 1 (its full fine-tuning does not clip). Left as it is: its loss is the mean of the
micro-batches' means, so rows with few targets weigh more (the loss written down is the mean over tokens); and
embeddings and head are two matrices, also where the model ties them, so the curves part from the second step on.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.peer import Spec, accumulation, answer
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.data.base import get_sft_collate_fn
from litgpt.finetune import full
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from torch.utils.data import DataLoader

ended: list[float] = []
norms: list[float] = []
rates: list[float] = []


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips the gradient's norm to 1 first, and notes when it is done. LitGPT finds it by its name."""

    def step(self, closure: Any = None) -> Any:
        weights = [weight for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, 1.0)))
        rates.append(self.param_groups[0]["lr"])
        result = super().step(closure)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        ended.append(time.time())
        return result


class Rows(DataModule):
    """Token ids and labels, in order."""

    def __init__(self, rows: list[dict[str, list[int]]]) -> None:
        super().__init__()
        self.rows = [
            {
                "input_ids": torch.tensor(row["input_ids"]),
                "labels": torch.tensor(row["labels"]),
                "token_counts": {
                    "raw": len(row["input_ids"]),
                    "raw_plus_prompt_template": len(row["input_ids"]),
                },
            }
            for row in rows
        ]
        self.prompt_style: Any = None
        self.batch = 1

    def connect(
        self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None, **_: Any
    ) -> None:
        self.batch = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=self.batch, collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows[:1], collate_fn=get_sft_collate_fn())  # type: ignore[arg-type]


def train(spec: Spec) -> dict[str, Any]:
    """Train and return what happened."""
    micro_batch, accumulated = accumulation(spec)
    parts: list[tuple[float, int]] = []
    their_loss = full.chunked_cross_entropy

    def noted(logits: Any, targets: torch.Tensor, **more: Any) -> torch.Tensor:
        loss = their_loss(logits, targets, **more)
        if torch.is_grad_enabled():
            parts.append((float(loss.detach()), int((targets != -100).sum())))
        return loss

    def linear(optimizer: Any, warmup_steps: int, max_steps: int) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / spec["steps"]))

    full.chunked_cross_entropy, full.get_lr_scheduler = noted, linear
    full.save_hyperparameters = full.save_prompt_style = lambda *_: None  # they want LitGPT's command line
    full.setup(
        checkpoint_dir=Path(spec["settings"]["checkpoint"]),
        out_dir=Path(spec["output_dir"]) / "out",
        precision="bf16-mixed" if spec["precision"] == "bf16" else "32-true",
        devices=1,
        data=Rows(spec["rows"]),
        train=TrainArgs(
            save_interval=None,
            global_batch_size=spec["rows_per_step"],
            micro_batch_size=micro_batch,
            lr_warmup_steps=1,
            epochs=1,
            max_steps=spec["stop_after"],
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={
            "class_path": f"{ClippedAdamW.__module__}.ClippedAdamW",
            "init_args": {"lr": spec["learning_rate"], "weight_decay": 0.0, "fused": True},
        },
        seed=spec["seed"],
    )
    loss = []
    for start in range(0, len(parts), accumulated):
        step = parts[start : start + accumulated]
        loss.append(sum(mean * count for mean, count in step) / sum(count for _, count in step))
    return {"loss": loss, "grad_norm": norms, "learning_rate": rates, "ended": ended, "rows": spec["rows"]}


def convert(model: Path, checkpoint: Path, name: str) -> None:
    """Make LitGPT's checkpoint of a Hugging Face folder, whole or not at all."""
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial)
    convert_hf_checkpoint(partial, model_name=name)
    partial.rename(checkpoint)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    else:
        answer(train, ("litgpt", "lightning"))
