"""What a run's folder is after a crash, made of one that came to its end; and all that a run has come to."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tests.faults.children import clock_free, events


def crashed(whole: Path, run: Path, step: int) -> Path:
    """Copy a run as a crash would have left it that came when the checkpoint of `step` had been committed: events
    and slides of later steps are there, the end is not."""
    shutil.copytree(whole, run)
    for path in (run / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    shutil.rmtree(run / "model")
    lines = (run / "events.jsonl").read_text("utf-8").splitlines(keepends=True)
    assert json.loads(lines[-1])["type"] == "end"
    (run / "events.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    return run


def outcome(run: Path, step: int) -> dict[str, Any]:
    """Everything that a run which ended after `step` has come to, but for clocks."""
    content = json.loads(checkpoint(run, step, "state.json").read_text("utf-8"))
    content["progress"].pop("events_size")  # times have more digits or fewer
    return {
        "events": clock_free(events(run)),
        "hashes": {
            path.name: _digest(path)
            for folder in (checkpoint(run, step), run / "model")
            for path in folder.glob("*.safetensors")
        },
        "state": content,
        "slides": {str(path.relative_to(run)): _digest(path) for path in run.glob("slides/*/*.safetensors")},
    }


def checkpoint(run: Path, step: int, file: str = "") -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / file


def tree(run: Path) -> dict[str, str]:
    """Each file of a run, hashed; not whose it is at the moment."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(run)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
