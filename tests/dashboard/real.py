"""Records as the trainer writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.events import (
    AlertEvent,
    CheckpointEvent,
    EndEvent,
    EvalEvent,
    Event,
    SampleEvent,
    SlideEvent,
    StartEvent,
    StepEvent,
    TensorsEvent,
    WatchEvent,
)
from surefoot.runfolder import RunFolder

TENSORS = ["model.embed.weight", "model.layers.0.up.weight", "model.layers.0.down.weight", "lm_head.weight"]
BEGAN = 1_795_412_273.25


def step(number: int, **changed: Any) -> StepEvent:
    """One update; a row's name tries to look like a record's fields."""
    values: dict[str, Any] = {
        "time": BEGAN + 0.7 * number,
        "epoch": number / 7,
        "loss": 2.5 / number,
        "learning_rate": 1e-4 / number,
        "grad_norm": 9.0 / number,
        "clip_factor": 1.0,
        "token_accuracy": 0.5,
        "entropy": 1e-9 * number,
        "tokens": 40,
        "supervised": 17,
        "num_tokens": 40 * number,
        "slots": 38,
        "micro_batches": 1,
        "step_seconds": 0.7,
        "tokens_per_second": 57.1,
        "memory_bytes": 123_456_789_012,
        "examples": [("rows.jsonl:3", 1.5, 8), (f'a"], "num_tokens": 9, "examples": [{number}', 2.0, 9)],
    }
    return StepEvent(step=number, **{**values, **changed})


def others(number: int) -> list[Event]:
    """What comes after this update besides."""
    time = BEGAN + 0.7 * number + 0.1
    found: list[Event] = []
    if number % 2 == 0:
        shares = [0.25] * len(TENSORS)
        norms = [float(number + i) for i in range(len(TENSORS))]
        found.append(
            TensorsEvent(
                step=number, time=time, grad_norm=norms, zero_share=shares, weight_norm=norms, update_norm=shares,
                lost_share=shares,
            )
        )  # fmt: skip
    if number % 3 == 0:
        p = {"Paris": 1 / number, "Rome": 0.1} if number % 2 else {"Paris": 1 / number, f"at {number}": 0.1}
        found.append(WatchEvent(step=number, time=time, prompt="capital?", p=p))
    if number % 5 == 0:
        metrics = {"eval_loss": 3.0 / number, "eval_token_accuracy": 0.25}
        found.append(
            EvalEvent(step=number, time=time, name="eval", metrics=metrics, best=True, eval_seconds=0.1)
        )
        half = "half a pair: \ud83d"  # as a tokenizer's piece may be
        found.append(SampleEvent(step=number, time=time, where="r:1", prompt="p", answer=half, want="w"))
    if number % 7 == 0:
        found.append(AlertEvent(step=number, time=time, kind="high loss", message=f"the loss of {number}"))
        found.append(
            SlideEvent(
                step=number,
                time=time,
                path=f"slides/step-{number:08}",
                because="b",
                headline="h",
                open_seconds=1.0,
            )
        )
    if number % 6 == 0:
        found.append(
            CheckpointEvent(
                step=number, time=time, path=f"checkpoints/step-{number:08}", because="steps", tensor_bytes=9,
                stall_seconds=0.0, commit_seconds=0.1,
            )
        )  # fmt: skip
    return found


def start(total: int) -> StartEvent:
    """The beginning."""
    return StartEvent(step=0, time=BEGAN, total_steps=total, steps_per_epoch=7, notes=["checked"])


def end(number: int, reason: str = "finished") -> EndEvent:
    """The end."""
    return EndEvent(
        step=number,
        time=BEGAN + 0.7 * number + 0.2,
        reason=reason,
        train_runtime_seconds=1.0,
        train_loss=1.0,
        peak_memory_bytes=9,
        predicted_peak_memory_bytes=9,
    )


def config(run: RunFolder, total: int, **more: Any) -> None:
    """run.json, without a place on disk."""
    options = {"learning_rate": 1e-4, "slides_from_ui": False}
    run.write_config({"config": options, "tensors": TENSORS, "total_steps": total, **more})


def run(folder: Path, steps: int, *, total: int | None = None, ended: str | None = "finished") -> RunFolder:
    """A run of so many updates."""
    folder.mkdir(parents=True, exist_ok=True)
    made, total = RunFolder(folder), total or steps
    config(made, total)
    made.append(start(total))
    for number in range(1, steps + 1):
        made.append(step(number))
        for event in others(number):
            made.append(event)
    if ended:
        made.append(end(steps, ended))
    return made
