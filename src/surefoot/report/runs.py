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
from surefoot.regular import text_of
from surefoot.report.records import FILE, is_step, read_events
from surefoot.runfolder import MOST_CONFIG


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
    config = read_config(folder / "run.json", problems)
    events = with_resumed(list(read_events(folder / FILE, problems)), config)
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


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """What run.json says; empty, and said in `problems`, where it cannot be read."""
    try:
        content = json.loads(text_of(path, MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"run.json cannot be read: {error}")
        return {}
    if isinstance(content, dict):
        return content
    problems.append("run.json holds no object")
    return {}


def with_resumed(events: list[dict[str, Any]], config: dict[str, Any]) -> list[dict[str, Any]]:
    """The records, and where the run went on: events.jsonl is as if nothing had happened, run.json tells."""
    told = config.get("resumed")
    for entry in told if isinstance(told, list) else []:
        if isinstance(entry, dict) and is_step(step := entry.get("step")):
            place = next((i for i, event in enumerate(events) if event["step"] > step), len(events))
            events.insert(place, {"type": "start", **entry, "resumed": True})
    return events
