"""A run folder as a report reads it: run.json, events.jsonl, slides/.

Nothing is written and nothing of the trainer is imported, so that a run can be looked at while it trains, after a
crash, and on another machine. What cannot be read is left out and named in `problems`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.errors import UserError
from surefoot.microscope.slide import Opened


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    path: Path
    config: dict[str, Any]
    """run.json; empty where it is missing or half written."""
    events: list[dict[str, Any]]
    """The records in order; of steps that were done again after a resume, the later ones."""
    slides: list[Path]
    """Folders of the slides, by step."""
    problems: list[str]
    """What could not be read, in words."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def of(self, *types: str) -> list[dict[str, Any]]:
        """The records of these types."""
        return [event for event in self.events if event["type"] in types]


def is_run(folder: str | Path) -> bool:
    """Whether the folder looks like a run."""
    return any((Path(folder) / name).is_file() for name in ("run.json", "events.jsonl"))


def read_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not. Raises UserError when it is no run at all."""
    folder = Path(folder)
    if not is_run(folder):
        raise UserError(
            f"{folder}: not a run: it has neither run.json nor events.jsonl. Name the output_dir of a training run"
        )
    problems: list[str] = []
    config = _read_config(folder / "run.json", problems)
    events = _without_repeats(_read_events(folder / "events.jsonl", problems))
    slides = sorted(path.parent for path in folder.glob("slides/step-*/slide.json"))
    return Run(folder, config, events, slides, problems)


def load_slides(run: Run) -> tuple[list[Opened], list[str]]:
    """The run's slides that can be read, by step, and what is wrong with the others."""
    opened, problems = [], []
    for folder in run.slides:
        try:
            opened.append(Opened.load(folder))
        except UserError as error:
            problems.append(str(error))
    return sorted(opened, key=lambda found: found.slide.step), problems


def _read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        problems.append(f"run.json cannot be read: {error}")
        return {}
    if isinstance(content, dict):
        return content
    problems.append("run.json holds no object")
    return {}


def _read_events(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        problems.append(f"events.jsonl cannot be read: {error}")
        return []
    # What follows the last line's end is a record that is being written, or that a crash cut off.
    if lines.pop():
        problems.append("events.jsonl: the last record is not complete; it is left out")
    events = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except (UnicodeDecodeError, json.JSONDecodeError):
            problems.append(f"events.jsonl:{number}: cannot be read; it is left out")
            continue
        if isinstance(event, dict) and isinstance(event.get("type"), str) and _is_step(event.get("step")):
            events.append(event)
        else:
            problems.append(f"events.jsonl:{number}: no record of a type and a step; it is left out")
    return events


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _without_repeats(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A resumed run begins again after its checkpoint: what an earlier attempt recorded beyond that is dropped."""
    kept: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "start" and event.get("resumed"):
            kept = [old for old in kept if old["step"] <= event["step"]]
        kept.append(event)
    return kept
