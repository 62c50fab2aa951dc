"""Long runs with what a trainer records, for measuring what looks at them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from surefoot.events import EndEvent, EvalEvent, StartEvent, StepEvent, TensorsEvent
from surefoot.runfolder import RunFolder

BEGAN, PACE = 1.79e9, 0.5
TENSORS = [f"model.layers.{layer}.part_{part}.weight" for layer in range(30) for part in range(9)]
ROWS = 8
OTHERS_EVERY = 1_000


def step(number: int, noise: random.Random) -> StepEvent:
    """A step like those of a real run, about 1 KB of it."""
    loss = 0.5 + 3 / (1 + number / 2_000) + noise.gauss(0, 0.1)
    return StepEvent(
        step=number, time=BEGAN + PACE * number, epoch=number / 5_000, loss=loss, learning_rate=1e-4 / (1 + number),
        grad_norm=abs(noise.gauss(1.5, 0.3)), clip_factor=noise.random(), token_accuracy=noise.random(),
        entropy=loss * 0.9, tokens=1_000, supervised=512, num_tokens=1_000 * number, slots=987, micro_batches=2,
        step_seconds=noise.gauss(0.49, 0.01), tokens_per_second=noise.gauss(2_000, 50), memory_bytes=3_123_456_789,
        examples=[(f"train.jsonl:{noise.randrange(40_000)}", noise.random() * 99, 64) for _ in range(ROWS)],
    )  # fmt: skip


def lines(steps: int, seed: int, *, ended: bool = True) -> Iterator[str]:
    """The events.jsonl of a run of so many steps."""
    noise = random.Random(seed)
    yield line(StartEvent(step=0, time=BEGAN, total_steps=steps, steps_per_epoch=5_000).to_dict())
    for number in range(1, steps + 1):
        event = step(number, noise)
        yield line({"type": event.type, **vars(event)} if number > 1 else event.to_dict())
        if number % OTHERS_EVERY == 0:
            values = [noise.random() for _ in TENSORS]
            yield line(
                TensorsEvent(
                    step=number, time=event.time, grad_norm=values, zero_share=values, weight_norm=values,
                    update_norm=values, lost_share=values,
                ).to_dict()
            )  # fmt: skip
            metrics = {"eval_loss": event.loss + 0.1, "eval_token_accuracy": 0.5}
            yield line(
                EvalEvent(
                    step=number, time=event.time, name="eval", metrics=metrics, best=False, eval_seconds=1.0
                ).to_dict()
            )
    if ended:
        yield line(
            EndEvent(
                step=steps, time=BEGAN + PACE * steps, reason="finished", train_runtime_seconds=PACE * steps,
                train_loss=1.0, peak_memory_bytes=0, predicted_peak_memory_bytes=0,
            ).to_dict()
        )  # fmt: skip


def line(record: dict[str, Any]) -> str:
    """A record as the trainer writes it."""
    return json.dumps(record, ensure_ascii=False) + "\n"


def make(folder: Path, steps: int, seed: int, *, copy: Path | None = None, ended: bool = True) -> RunFolder:
    """A run; its events copied, or made."""
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    total = steps if ended else 2 * steps
    config = {"learning_rate": 1e-5 * (1 + seed), "seed": 7}
    run.write_config({"config": config, "model": {"name": "toy"}, "tensors": TENSORS, "total_steps": total})
    if copy is not None:
        shutil.copyfile(copy / run.events_file.name, run.events_file)
    else:
        with run.events_file.open("w", encoding="utf-8") as file:
            file.writelines(lines(steps, seed, ended=ended))
    return run
