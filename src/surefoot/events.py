"""The run folder and its events: the only interface between training and everything that looks at it.

run.json         config as resolved, versions, hashes, the data ledger
events.jsonl     one typed record a line, appended as it happens
checkpoints/     to resume from
slides/          steps opened under the microscope
open-next-step   made by the user: open the next step; deleted when that is done
model/           the result
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from surefoot.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every record has: its type, the number of finished steps, and the time."""

    type: ClassVar[str]
    step: int
    time: float = field(default_factory=time.time)
    """Seconds since 1970; the only clock field besides those that end in _seconds or _per_second."""

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """The run begins or goes on: what the bar needs to know."""

    type: ClassVar[str] = "start"
    total_steps: int
    steps_per_epoch: int
    resumed: bool = False
    notes: list[str] = field(default_factory=list)
    """What was checked and planned for this model on this machine, in words."""


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """One update."""

    type: ClassVar[str] = "step"
    epoch: float
    loss: float
    """Mean −log p over the step's supervised tokens, before the update."""
    learning_rate: float
    grad_norm: float
    """Of the whole gradient, before clipping."""
    clip_factor: float
    """What the gradient was multiplied by; 1 when it was not clipped."""
    token_accuracy: float
    entropy: float
    tokens: int
    supervised: int
    num_tokens: int
    """Tokens of all steps so far."""
    slots: int
    """Tokens that went through the model: fewer than `tokens` where prefixes are shared."""
    micro_batches: int
    step_seconds: float
    tokens_per_second: float
    memory_bytes: int
    """The most that the process has held so far (on CUDA: tensors on the GPU)."""
    examples: list[tuple[str, float, int]]
    """(where, sum of −log p, supervised tokens) of each example."""


@dataclass(frozen=True, kw_only=True)
class TensorsEvent(Event):
    """Every trained tensor at an update, in the order of run.json's `tensors`; gradients are not clipped."""

    type: ClassVar[str] = "tensors"
    grad_norm: list[float]
    zero_share: list[float]
    """Share of the gradient's entries that are exactly 0."""
    weight_norm: list[float]
    """Before the update."""
    update_norm: list[float]
    lost_share: list[float]
    """Of the entries that the update would move, those that are the same in bf16 after as before."""


@dataclass(frozen=True, kw_only=True)
class SlideEvent(Event):
    """A step was opened under the microscope."""

    type: ClassVar[str] = "slide"
    path: str
    """The slide's folder, in the run's `slides/`."""
    because: str
    headline: str
    open_seconds: float
    """What recording it took besides the step."""


@dataclass(frozen=True, kw_only=True)
class EvalEvent(Event):
    """One evaluation; metrics are over tokens, so they do not depend on how rows were batched."""

    type: ClassVar[str] = "eval"
    name: str
    metrics: dict[str, float]
    best: bool
    eval_seconds: float


@dataclass(frozen=True, kw_only=True)
class WatchEvent(Event):
    """A watched prompt: the probability of its completion and of the alternatives."""

    type: ClassVar[str] = "watch"
    prompt: str
    p: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class SampleEvent(Event):
    """A greedy answer to a held-out prompt."""

    type: ClassVar[str] = "sample"
    where: str
    prompt: str
    answer: str
    want: str


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint was saved."""

    type: ClassVar[str] = "checkpoint"
    path: str
    save_seconds: float


@dataclass(frozen=True, kw_only=True)
class AlertEvent(Event):
    """Something the user should know of."""

    type: ClassVar[str] = "alert"
    kind: str
    """turn end, not finite, no target, high loss, lost updates, no gradient; slide: found on an opened step, or it
    could not be kept."""
    message: str


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """The run is over, or was interrupted and can go on."""

    type: ClassVar[str] = "end"
    reason: str
    """finished, stopped early, or interrupted."""
    train_runtime_seconds: float
    train_loss: float
    peak_memory_bytes: int
    """The most the process held (on CUDA: tensors on the GPU), from its start."""
    predicted_peak_memory_bytes: int


Listener = Callable[[Event], None]
"""Something that is told of every event: the event log, the progress bar."""


class RunFolder:
    """A run's folder, as the trainer writes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.slides = self.path / "slides"
        self.model = self.path / "model"
        self.asked_file = self.path / "open-next-step"
        self.config_file = self.path / "run.json"
        self.events_file = self.path / "events.jsonl"

    def claim(self, overwrite: bool = False) -> None:
        """Make the folder for a new run.

        Raises UserError when it holds a run already (unless `overwrite`), or cannot be written.
        """
        events = list(self.events())
        if events and not overwrite:
            finished = events[-1]["type"] == "end" and events[-1]["reason"] != "interrupted"
            step = max(event["step"] for event in events)
            on = "" if finished else " resume_from_checkpoint=true goes on from its newest checkpoint."
            raise UserError(
                f"output_dir: {self.path} holds a run {'that finished' if finished else 'stopped'} after step "
                f"{step}.{on} Name another folder, or start over in this one with overwrite_output_dir=true"
            )
        try:
            for old in (self.checkpoints, self.slides, self.model):
                if old.is_dir():
                    shutil.rmtree(old)
            self.path.mkdir(parents=True, exist_ok=True)
            self.events_file.write_bytes(b"")
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror}") from None

    def events(self) -> Iterator[dict[str, Any]]:
        """The records so far; a last line that was cut off by a crash is left out."""
        if not self.events_file.is_file():
            return
        with self.events_file.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    return

    def write_config(self, content: dict[str, Any]) -> None:
        """Write run.json, whole or not at all."""
        partial = self.config_file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.config_file)

    def append(self, event: Event) -> None:
        """Append a record; it is in the file when this returns."""
        with self.events_file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")

    def go_back(self, step: int, events_size: int) -> None:
        """Make the folder what it was when the checkpoint of `step` was saved: the first bytes of the events, and
        the slides of the steps so far.

        Raises UserError when there are later checkpoints: they, too, would be of another run.
        """
        if any(of > step for of, _ in _numbered(self.checkpoints)):
            raise UserError(
                f"resume_from_checkpoint: {self.path} has checkpoints after step {step}. Name another output_dir "
                "to go on from that one, or delete the later ones"
            )
        for of, path in _numbered(self.slides):
            if of > step:
                shutil.rmtree(path, ignore_errors=True)
        if self.events_file.is_file():
            os.truncate(self.events_file, events_size)

    def events_size(self) -> int:
        """Bytes of the events so far."""
        return self.events_file.stat().st_size if self.events_file.is_file() else 0


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Checkpoints or slides of a folder, with their steps."""
    for path in sorted(folder.glob("step-*")):
        number = path.name.removeprefix("step-")
        if number.isdecimal():
            yield int(number), path
