"""What a run shows while it goes: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from surefoot.console import text_console
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
    WatchEvent,
)
from surefoot.ranks import rank

PAUSE = 10.0
"""Seconds between two lines about steps where there is no terminal for a bar."""


@contextmanager
def working(on: str) -> Iterator[None]:
    """Says on a terminal what takes a moment, and takes it away again."""
    console = text_console(stderr=True)
    with console.status(on) if console.is_terminal and rank() == 0 else nullcontext():
        yield


@contextmanager
def counting(what: str, console: Console | None = None) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal, gone at the end; yields what is to be told how many of how many (None: nobody knows) are
    done. What is printed to `console` meanwhile stands above the bar."""
    console = console or text_console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    with _bar(console, transient=True) as bar:
        task = bar.add_task(what, total=None, said=what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _bar(console: Console, transient: bool = False) -> Progress:
    return Progress(
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        transient=transient,
    )


class ProgressBar:
    """Listens to a run's events and tells of them on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or text_console(stderr=True)
        self.bar: Progress | None = None
        self._total = 0
        self._looking: TaskID | None = None
        self._told = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, StartEvent):
            self._total = event.total_steps
            for note in event.notes:
                self.console.print(note, soft_wrap=True)
            self._start(event)
        elif isinstance(event, StepEvent):
            self._step(event)
        elif isinstance(event, EvalEvent):
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            self._say(event, f"{metrics}{'  (best so far)' if event.best else ''}")
        elif isinstance(event, WatchEvent):
            self._say(event, "  ".join(f"p({text}) {p:.4f}" for text, p in event.p.items()))
        elif isinstance(event, SampleEvent):
            right = "✓" if event.answer.strip() == event.want.strip() else "✗"
            self._say(event, f"{event.where} {right} {event.answer.strip()!r}")
        elif isinstance(event, SlideEvent):
            self._say(event, f"opened, {event.because}, in {event.open_seconds:.0f} s. {event.headline}")
        elif isinstance(event, CheckpointEvent):
            times = (
                f"stood still for {event.stall_seconds:.2f} s, committed after {event.commit_seconds:.1f} s"
            )
            self._say(event, f"saved {event.path} ({event.because}): {times}")
        elif isinstance(event, AlertEvent):
            self._say(event, f"note: {event.message}")
        elif isinstance(event, EndEvent):
            self.close()
            peak, predicted = event.peak_memory_bytes / 1e9, event.predicted_peak_memory_bytes / 1e9
            self.console.print(f"peak of memory {peak:.1f} GB (predicted {predicted:.1f} GB)")

    def _start(self, event: StartEvent) -> None:
        if not self.console.is_terminal:
            return
        self.bar = _bar(self.console)
        self.bar.add_task("training", total=event.total_steps, completed=event.step, said="first step")
        self.bar.start()

    def look(self, done: int, total: int) -> None:
        """Of the passes that opening the step at hand takes, so many are done."""
        if self.bar is None:
            return
        if self._looking is None:
            self._looking = self.bar.add_task(
                "looking", total=total, said="passes: this step is being opened"
            )
        self.bar.update(self._looking, completed=done)

    def _step(self, event: StepEvent) -> None:
        if self.bar is not None and self._looking is not None:
            self.bar.remove_task(self._looking)
            self._looking = None
        speed = f"{event.tokens_per_second:,.0f} tokens/s"
        speed += "" if event.mfu is None else f"  {event.mfu:.0%} of peak"
        said = f"loss {event.loss:.4f}  lr {event.learning_rate:.2e}  {speed}"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=event.step, said=said)
        elif not self.console.is_terminal and (
            time.monotonic() - self._told >= PAUSE or event.step == self._total
        ):
            self._told = time.monotonic()
            self._say(event, said)

    def _say(self, event: Event, text: str) -> None:
        console = self.bar.console if self.bar is not None else self.console
        console.print(f"step {event.step:,} of {self._total:,}:  {text}", soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was; safe to call at any time."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
