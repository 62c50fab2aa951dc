"""A run folder as a report reads it: run.json, events.jsonl, slides/.

Nothing is written and nothing of the trainer is imported, so that a run can be looked at while it trains, after a
crash, and on another machine. What cannot be read is left out and named in `problems`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from surefoot.errors import UserError
from surefoot.microscope.slide import Opened
from surefoot.regular import open_regular, text_of
from surefoot.runfolder import MOST_CONFIG, MOST_RECORD

MOST_EVENTS = 1 << 31
"""Bytes of all records."""
MOST_PROBLEMS = 100
"""From then on it is no run."""


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    path: Path
    config: dict[str, Any]
    """run.json; empty where it is missing or half written."""
    events: list[dict[str, Any]]
    """The records in order, and a `start` where the run went on after a stop."""
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
    return any((Path(folder) / name).exists() for name in ("run.json", "events.jsonl"))


def read_run(folder: str | Path) -> Run:
    """Read a run folder, finished or not. Raises UserError when it is no run at all."""
    folder = Path(folder)
    if not is_run(folder):
        raise UserError(
            f"{folder}: not a run: it has neither run.json nor events.jsonl. Name the output_dir of a training run"
        )
    problems: list[str] = []
    config = _read_config(folder / "run.json", problems)
    events = _with_resumed(_read_events(folder / "events.jsonl", problems), config)
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
        content = json.loads(text_of(path, MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"run.json cannot be read: {error}")
        return {}
    if isinstance(content, dict):
        return content
    problems.append("run.json holds no object")
    return {}


def _read_events(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    try:
        with open_regular(path) as file:
            for number, line in enumerate(_lines(file, problems), 1):
                if len(problems) > MOST_PROBLEMS:
                    problems.append("events.jsonl: the rest is not read, for it is no run's")
                    break
                try:
                    event = json.loads(line)
                except (ValueError, RecursionError):
                    problems.append(f"events.jsonl:{number}: cannot be read; it is left out")
                    continue
                if (
                    isinstance(event, dict)
                    and isinstance(event.get("type"), str)
                    and _is_step(event.get("step"))
                ):
                    events.append(event)
                else:
                    problems.append(f"events.jsonl:{number}: no record of a type and a step; it is left out")
    except (OSError, UserError) as error:
        problems.append(f"events.jsonl cannot be read: {error}")
    return events


def _lines(file: IO[bytes], problems: list[str]) -> Iterator[bytes]:
    """Whole lines, up to one that is too long or the most that is read of a run."""
    total = 0
    while line := file.readline(MOST_RECORD + 1):
        total += len(line)
        if len(line) > MOST_RECORD or total > MOST_EVENTS:
            problems.append("events.jsonl is larger than a run's can be; the rest is left out")
            return
        if not line.endswith(b"\n"):
            # A record that is being written, or that a crash cut off.
            problems.append("events.jsonl: the last record is not complete; it is left out")
            return
        yield line


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _with_resumed(events: list[dict[str, Any]], config: dict[str, Any]) -> list[dict[str, Any]]:
    """The records, and where the run went on: events.jsonl is as if nothing had happened, run.json tells."""
    told = config.get("resumed")
    for entry in told if isinstance(told, list) else []:
        if isinstance(entry, dict) and _is_step(step := entry.get("step")):
            place = next((i for i, event in enumerate(events) if event["step"] > step), len(events))
            events.insert(place, {"type": "start", **entry, "resumed": True})
    return events
