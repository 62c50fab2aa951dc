"""What the peers' workers share: how they are told what to do, and how they answer. Imports no surefoot.

A worker runs in the peer's own environment, from the repository's root:

    ENVIRONMENT/bin/python -m benchmarks.peer_trl spec.json out.json

spec.json: model (folder), rows (`input_ids` and `labels`), precision (bf16 or fp32), steps (the length of the
learning rate's schedule), stop_after (steps really done), rows_per_step, learning_rate, seed, lora_r (0: all
weights), device (cpu or cuda), output_dir, settings (the peer's own).
out.json: loss, grad_norm and learning_rate of each step, when each step ended (seconds since 1970), the token ids
and labels the peer trained on, threads, versions, and on a GPU the highest memory in bytes.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Spec = dict[str, Any]


def answer(train: Callable[[Spec], dict[str, Any]], packages: tuple[str, ...]) -> None:
    """Read the specification, train, and write down what happened, with the packages' versions."""
    import torch

    given, wanted = map(Path, sys.argv[1:])
    spec = json.loads(given.read_text())
    found = train(spec)
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}}
    found |= {"threads": torch.get_num_threads(), "versions": versions}
    if spec["device"] == "cuda":
        found["gpu_peak_bytes"] = torch.cuda.max_memory_reserved()
    wanted.write_text(json.dumps(found))


def clock(stop_after: int) -> Any:
    """A callback for Hugging Face's Trainer: `ended` and `logged` of each step; stops after `stop_after`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ended: list[float] = []
            self.logged: list[dict[str, float]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if args.device.type == "cuda":
                import torch

                torch.cuda.synchronize()
            self.ended.append(time.time())
            control.should_training_stop |= state.global_step >= stop_after

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                self.logged.append(logs)

    return Clock()


def curves(clock: Any) -> dict[str, list[float]]:
    """The clock's part of the answer."""
    names = ("loss", "grad_norm", "learning_rate")
    return {name: [float(entry[name]) for entry in clock.logged] for name in names} | {"ended": clock.ended}


def accumulation(spec: Spec) -> tuple[int, int]:
    """Rows of a micro-batch, and micro-batches of a step. Raises ValueError when the rows do not divide."""
    rows, micro_batch = spec["rows_per_step"], min(spec["settings"]["micro_batch"], spec["rows_per_step"])
    if rows % micro_batch:
        raise ValueError(f"a step of {rows} rows has no micro-batches of {micro_batch}")
    return micro_batch, rows // micro_batch
