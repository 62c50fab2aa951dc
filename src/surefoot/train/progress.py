"""The live progress bar: loss, learning rate, tokens per second, time left. Silent when there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from surefoot.events import EndEvent, EvalEvent, Event, StartEvent, StepEvent


class ProgressBar:
    """Listens to a run's events and draws them on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None

    def __call__(self, event: Event) -> None:
        if not self.console.is_terminal:
            return
        if isinstance(event, StartEvent):
            self._start(event)
        elif isinstance(event, StepEvent) and self.bar is not None:
            said = f"loss {event.loss:.4f}  lr {event.learning_rate:.2e}  {event.tokens_per_second:,.0f} tokens/s"
            self.bar.update(self.bar.task_ids[0], completed=event.step, said=said)
        elif isinstance(event, EvalEvent) and self.bar is not None:
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
            self.bar.console.print(
                f"step {event.step}: {event.name}  {metrics}{'  (best)' if event.best else ''}"
            )
        elif isinstance(event, EndEvent):
            self.close()

    def _start(self, event: StartEvent) -> None:
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.bar.add_task("training", total=event.total_steps, completed=event.step, said="")
        self.bar.start()

    def close(self) -> None:
        """Leave the terminal as it was; safe to call at any time."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
