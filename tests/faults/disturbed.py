"""A run that was never disturbed, to compare with those that were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.faults.children import Child, Zygote, clock_free, events, state_hashes
from tests.faults.conftest import Recipe

LAST = 12


def train(
    zygote: Zygote, recipe: Recipe, folder: Path, name: str = "run", options: Any = None, **more: Any
) -> Child:
    """Train to the end, into `folder / name`."""
    path = recipe(f"{name}.yaml", output_dir=str(folder / name), **(options or {}))
    child = zygote.run(["train", path], folder, **more)
    assert child.wait() == 0, child.err
    return child


def told(run: Path, *leave_out: str) -> list[dict[str, Any]]:
    """A run's events without what the clock decides, nor what is told of the disturbance itself."""
    return [event for event in clock_free(events(run)) if event["type"] not in leave_out]


def same(run: Path, other: Path, *leave_out: str) -> None:
    """Weights, optimizer state, result and events are equal, bit for bit. `leave_out`: types of events."""
    assert state_hashes(run, LAST) == state_hashes(other, LAST)
    assert told(run, *leave_out) == told(other, *leave_out)


def steps_left(run: Path) -> list[int]:
    """The steps of the checkpoints that are there."""
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


def refused(child: Child, *words: str) -> None:
    """The command ended as for a user's mistake: status 2, one message without a traceback, with these words."""
    assert child.wait() == 2, child.err
    said = child.err[child.err.index("surefoot: ") :]
    assert "Traceback" not in child.err
    for word in words:
        assert word in said, said
