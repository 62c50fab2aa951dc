"""What a run shows: a bar with loss, rate, speed and time left on a terminal; plain lines elsewhere."""

from __future__ import annotations

import io

import pytest

from surefoot.console import text_console
from surefoot.events import (
    EndEvent,
    EvalEvent,
    Event,
    SampleEvent,
    SlideEvent,
    StartEvent,
    StepEvent,
    WatchEvent,
)
from surefoot.train.progress import ProgressBar, counting

STEP = StepEvent(
    step=2, epoch=1.0, loss=0.25, learning_rate=1e-4, grad_norm=1.0, clip_factor=1.0, token_accuracy=0.5,
    entropy=0.1, tokens=70, supervised=7, num_tokens=140, slots=60, micro_batches=1, step_seconds=0.1,
    memory_bytes=1,
    tokens_per_second=1234.0, examples=[],
)  # fmt: skip
EVENTS: list[Event] = [
    StartEvent(step=0, total_steps=2, steps_per_epoch=2, notes=["checked on [3] rows"]),
    WatchEvent(step=0, prompt="?", p={"Sacramento": 0.0188, "[bold]": 0.5}),
    STEP,
    EvalEvent(step=2, name="eval", metrics={"eval_loss": 0.5}, best=True, eval_seconds=1.0),
    SampleEvent(step=2, where="a.jsonl:1", prompt="?", answer="Denver", want="Denver"),
    EndEvent(
        step=2,
        reason="finished",
        train_runtime_seconds=1.0,
        train_loss=0.25,
        peak_memory_bytes=3_400_000_000,
        predicted_peak_memory_bytes=3_600_000_000,
    ),
]


def shown(terminal: bool) -> str:
    out = io.StringIO()
    bar = ProgressBar(text_console(file=out, force_terminal=terminal, width=120))
    for event in EVENTS:
        bar(event)
    assert bar.bar is None, "the terminal is given back"
    return out.getvalue()


SLIDE = SlideEvent(
    step=2, path="step-00000002", because="asked for", headline="Step 2: loss 2 → 1", open_seconds=11.6
)


def test_a_step_that_is_opened_is_counted_in_a_bar_of_its_own() -> None:
    out = io.StringIO()
    bar = ProgressBar(text_console(file=out, force_terminal=True, width=120))
    start, step, *_ = (e for e in EVENTS if isinstance(e, StartEvent | StepEvent))
    bar.look(1, 11)  # nothing is drawn before the run starts
    bar(start)
    assert bar.bar is not None
    bar.look(7, 11)
    (task,) = (task for task in bar.bar.tasks if "opened" in task.fields["said"])
    assert (task.completed, task.total) == (7, 11)
    bar(step)
    assert [task.total for task in bar.bar.tasks] == [2]
    bar(SLIDE)
    bar.close()
    assert "step 2 of 2:  opened, asked for, in 12 s. Step 2: loss 2 → 1" in out.getvalue()


def test_counting_draws_on_a_terminal_only(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for forced in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", forced)
        with counting("passes") as told:
            told(3, 9)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("3/9") == 1


def test_texts_are_printed_as_they_are(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with counting("[bold] :cat:"):
        pass
    ProgressBar()(WatchEvent(step=0, prompt="?", p={"[red] :cat:": 0.5}))
    said = capsys.readouterr().err
    assert "[bold] :cat:" in said and "p([red] :cat:) 0.5000" in said


def test_a_terminal_gets_a_bar() -> None:
    said = shown(terminal=True)
    for part in ("2/2", "loss 0.2500", "lr 1.00e-04", "1,234 tokens/s", "left", "p(Sacramento) 0.0188"):
        assert part in said


def test_elsewhere_there_are_plain_lines_and_no_bar() -> None:
    said = shown(terminal=False)
    assert "\x1b" not in said
    assert "\r" not in said
    assert said.splitlines() == [
        "checked on [3] rows",
        "step 0 of 2:  p(Sacramento) 0.0188  p([bold]) 0.5000",
        "step 2 of 2:  loss 0.2500  lr 1.00e-04  1,234 tokens/s",
        "step 2 of 2:  eval_loss 0.5  (best so far)",
        "step 2 of 2:  a.jsonl:1 ✓ 'Denver'",
        "peak of memory 3.4 GB (predicted 3.6 GB)",
    ]
