"""The records of a run: what stands in its events.jsonl, one a line."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every record has: its type, the number of finished steps, and the time."""

    type: ClassVar[str]
    step: int
    time: float = field(default_factory=time.time)
    """Seconds since 1970; the only clock field besides `mfu` and those that end in _seconds or _per_second."""

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """The run begins: what the bar needs to know. When it goes on, only the bar is told."""

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
    mfu: float | None = None
    """Share of the GPUs' peak that the step computed with (`model.flops.utilisation`); None where there is none."""


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
    """A checkpoint is committed. The record comes when that is known: it may stand among those of later steps."""

    type: ClassVar[str] = "checkpoint"
    path: str
    because: str
    tensor_bytes: int
    """Of weights and optimizer state."""
    stall_seconds: float
    """For which training stood still: little more than a copy takes, unless memory was short of one."""
    commit_seconds: float
    """From the beginning until it could not be lost any more."""


@dataclass(frozen=True, kw_only=True)
class AlertEvent(Event):
    """Something the user should know of."""

    type: ClassVar[str] = "alert"
    kind: str
    """turn end, not finite, no target, high loss, lost updates, no gradient; slide: found on an opened step, or it
    could not be kept; checkpoint: it could not be saved, or is damaged."""
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
