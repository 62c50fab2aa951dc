"""The runs in some folders: which there are, and what each has told so far.

A run has an id that says nothing of its path and stays the same when the server starts anew. Whole indices of the
runs last looked at are kept, brief ones of all.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.dashboard.index import Index
from surefoot.dashboard.state import state_of
from surefoot.report.columns import curve
from surefoot.report.records import number
from surefoot.report.runs import is_run

DEEPEST = 4
"""Folders below a named one in which runs are looked for."""
MOST_RUNS = 5_000
MOST_FOLDERS = 100_000
KEPT_BYTES = 256 << 20
"""Memory of whole indices that are kept."""
SPARKS = 40
"""Stretches of a run that its sparkline shows the extremes of."""
OWN = ("output_dir", "run_name", "tags", "logging_dir", "resume_from_checkpoint", "overwrite_output_dir")
"""Options that differ between any two runs and tell nothing."""


@dataclass(frozen=True)
class Entry:
    """A run that was found."""

    id: str
    folder: Path
    name: str
    """Its path below the folder that was named."""

    def told(self, text: str) -> str:
        """A text for a page: the run by its name, not by where it is on this machine."""
        return text.replace(str(self.folder), self.name)


class Library:
    """The runs below some folders. Every method may be called from any thread."""

    def __init__(self, folders: Sequence[Path], secret: bytes) -> None:
        self.folders, self._secret = tuple(folders), secret
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._brief: dict[str, Index] = {}
        self._whole: OrderedDict[str, Index] = OrderedDict()

    def look(self) -> list[Entry]:
        """Look for runs anew; returns all there are, in the order of their names."""
        found = {entry.id: entry for folder in self.folders for entry in self._below(folder)}
        with self._lock:
            self._entries = found
            for indices in (self._brief, self._whole):
                for gone in set(indices) - set(found):
                    del indices[gone]
        return sorted(found.values(), key=lambda entry: entry.name)

    def _below(self, top: Path) -> Iterator[Entry]:
        whole = top.resolve()
        for folder in _runs(whole):
            digest = hmac.new(self._secret, os.fsencode(folder), hashlib.sha256).hexdigest()
            name = folder.name if folder == whole else folder.relative_to(whole).as_posix()
            yield Entry(digest[:20], folder, name)

    def entry(self, run: str) -> Entry | None:
        """The run of this id; looks anew for one that is not known."""
        if run not in self._entries:
            self.look()
        return self._entries.get(run)

    def brief(self, entry: Entry) -> Index:
        """The brief index of a run, as far as it was read; `grow` reads on."""
        with self._lock:
            return self._brief.setdefault(entry.id, Index(entry.folder, brief=True))

    def whole(self, entry: Entry) -> Index:
        """The whole index of a run; the ones not looked at for longest are let go when they take too much."""
        with self._lock:
            index = self._whole.setdefault(entry.id, Index(entry.folder))
            self._whole.move_to_end(entry.id)
            while len(self._whole) > 1 and sum(kept.nbytes for kept in self._whole.values()) > KEPT_BYTES:
                self._whole.popitem(last=False)
            return index


def _runs(top: Path) -> Iterator[Path]:
    """Run folders at or below this one, not through links, not inside other runs."""
    queue, seen, found = [(top, 0)], 0, 0
    while queue and seen < MOST_FOLDERS and found < MOST_RUNS:
        folder, depth = queue.pop(0)
        seen += 1
        try:
            here = is_run(folder)
            inside = [] if here else sorted(entry.path for entry in os.scandir(folder) if _worth(entry))
        except OSError:  # not for us to read
            continue
        if here:
            found += 1
            yield folder
        elif depth < DEEPEST:
            queue += [(Path(path), depth + 1) for path in inside]


def _worth(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


# What a list of runs says ------------------------------------------------------------------------------------


def summary(entry: Entry, index: Index) -> dict[str, Any]:
    """A run as a line of the list: state, losses, sparkline, tags."""
    state = state_of(index)
    with index.lock:
        steps, config = index.steps, index.config
        losses = steps["loss"]
        spark = curve(steps["step"], losses, SPARKS) if steps.count else {"x": [], "y": []}
        starts = [record for record in index.others if record["type"] == "start"]
        evals = [record for record in index.others if record["type"] == "eval"]
        alerts = sum(record["type"] == "alert" for record in index.others)
        slides = sum(record["type"] == "slide" for record in index.others)
        return {
            "id": entry.id,
            "name": entry.name,
            "model": _text(_part(config, "model").get("name")),
            "state": state.to_dict(),
            "loss": float(losses[-1]) if steps.count else None,
            "best": _best(losses, steps["step"], evals),
            "final": final_loss(losses, index.others),
            "spark": spark,
            "alerts": alerts,
            "slides": slides,
            "started": number(starts[0].get("time")) if starts else None,
            "tags": _tags(config),
            "read": index.offset,
        }


def _best(losses: Any, steps: Any, evals: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The lowest evaluation loss; the lowest training loss where none was evaluated."""
    held_out = [(loss, record["step"]) for record in evals if (loss := eval_loss(record)) is not None]
    if held_out:
        loss, step = min(held_out)
        return {"loss": loss, "step": step, "of": "eval"}
    if not np.isfinite(losses).any():
        return None
    at = int(np.nanargmin(np.where(np.isfinite(losses), losses, np.nan)))
    return {"loss": float(losses[at]), "step": int(steps[at]), "of": "train"}


@np.errstate(over="ignore")
def final_loss(losses: Any, others: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """What the run came to: its last evaluation, and the mean of its last steps, a twentieth of all."""
    last = losses[-max(1, len(losses) // 20) :]
    last = last[np.isfinite(last)]
    evals = (record for record in others if record["type"] == "eval")
    held_out = [loss for record in evals if (loss := eval_loss(record)) is not None]
    return {"eval": held_out[-1] if held_out else None, "train": float(last.mean()) if len(last) else None}


def eval_loss(record: Mapping[str, Any]) -> float | None:
    """The loss of an evaluation, if it has a finite one."""
    metrics = record.get("metrics")
    for key, value in metrics.items() if isinstance(metrics, dict) else ():
        found = number(value)
        if str(key).endswith("_loss") and found is not None and np.isfinite(found):
            return found
    return None


def _tags(config: Mapping[str, Any]) -> list[str]:
    told = _part(config, "config").get("tags")
    return [_text(tag) for tag in told[:20]] if isinstance(told, list) else []


def differing(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Option → run's id → its value in words, for options that are not the same in all of these runs.

    Args:
        configs: run's id → its run.json.
    """
    flat = {run: dict(_flat(config)) for run, config in configs.items() if config}
    keys = list(dict.fromkeys(key for options in flat.values() for key in options))
    rows = {key: {run: options.get(key, "–") for run, options in flat.items()} for key in keys}
    return {key: row for key, row in rows.items() if len(set(row.values())) > 1}


def _flat(config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key, value in _part(config, "config").items():
        if key not in OWN:
            yield str(key), _text(value)
    model, machine = _part(config, "model"), _part(config, "machine")
    for about, keys in ((model, ("name", "parameters")), (machine, ("device", "processes"))):
        yield from ((key, _text(about[key])) for key in keys if key in about)
    for name, part in _part(config, "data").items():
        if isinstance(part, dict) and "fingerprint" in part:
            yield f"{name} data", _text(part["fingerprint"])[:12]


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return "nested too deeply to be shown"
