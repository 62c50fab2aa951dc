"""Where a run stands: training, over, or stopped without a word. Read from its folder alone.

Who trains holds a lock on the run's `.lock`. It is never asked for, for a trainer that begins at that instant would
be refused; the kernel's own list of locks is read instead. For a run of another machine, the age of its last record
has to do.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.dashboard.index import Index
from surefoot.regular import text_of
from surefoot.report.records import is_step, number

LOCKS = Path("/proc/locks")
RECENT = 64
"""Steps whose pace tells the time left."""
QUIET_SECONDS, QUIET_STEPS = 120.0, 20.0
"""A run of another machine without news for so long, and for so many steps' time, has stopped."""
MOST_LOCK = 4096


@dataclass(frozen=True)
class State:
    """Where a run stands."""

    name: str
    """starting, training, finished, stopped early, interrupted, or stopped."""
    live: bool
    """Whether more is to come."""
    says: str
    """The same in a sentence."""
    step: int
    total_steps: int | None
    seconds_left: float | None
    """Estimated from the pace of the last steps; None where it is not live or not known."""
    seconds_per_step: float | None
    since: float | None
    """Time of the last record, seconds since 1970."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def state_of(index: Index, now: float | None = None) -> State:
    """Where the run of this index stands, as far as it has been read."""
    now = time.time() if now is None else now
    with index.lock:
        step = int(index.steps["step"][-1]) if index.steps.count else 0
        pace = _pace(index)
        last_other = index.others[-1] if index.others else {}
        times = [number(record.get("time")) for record in (last_other, index.last)]
        total = _total(index)
    since = max((found for found in times if found is not None), default=None)
    over = (
        last_other.get("reason") if last_other.get("type") == "end" and last_other["step"] >= step else None
    )
    name, says = _named(held(index.folder), over, step, since, pace, now)
    live = name in ("starting", "training")
    left = pace * (total - step) if name == "training" and pace is not None and total is not None else None
    return State(name, live, says, step, total, left, pace, since)


def _named(
    holds: bool | None, over: Any, step: int, since: float | None, pace: float | None, now: float
) -> tuple[str, str]:
    if over in ("finished", "stopped early"):
        return over, {"finished": "Finished.", "stopped early": "Stopped early: it no longer got better."}[
            over
        ]
    if holds is None:
        quiet = now - since if since is not None else float("inf")
        holds = quiet < max(QUIET_SECONDS, QUIET_STEPS * (pace or 0.0)) and over is None
        if not holds and over is None:
            return (
                "stopped",
                "No end is recorded, and there has been no news for long: the same command goes on.",
            )
    if holds:
        return ("training", "Training.") if step and over is None else ("starting", "Starting: no step yet.")
    if over == "interrupted":
        return "interrupted", "Interrupted, and saved: the same command goes on."
    return (
        "stopped",
        "Stopped without an end: killed, cut off, or copied while it trained. The same command goes on.",
    )


@np.errstate(over="ignore", invalid="ignore")
def _pace(index: Index) -> float | None:
    """Seconds a step, lately."""
    gaps = np.diff(index.steps["time"][-RECENT:])
    gaps = gaps[np.isfinite(gaps) & (gaps > 0)]
    return float(np.median(gaps)) if len(gaps) else None


def _total(index: Index) -> int | None:
    told = [index.config.get("total_steps")]
    told += [record.get("total_steps") for record in index.others[:1] if record["type"] == "start"]
    return next((found for found in told if isinstance(found, int) and is_step(found)), None)


def held(folder: Path) -> bool | None:
    """Whether a process of this machine trains here; None where that cannot be known."""
    path = folder / ".lock"
    try:
        owner = json.loads(text_of(path, MOST_LOCK))
        pid, host, inode = int(owner["pid"]), str(owner["host"]), path.stat().st_ino
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    if host != socket.gethostname() or pid <= 0:
        return None
    try:
        listed = [line.split() for line in LOCKS.read_text().splitlines()]
    except OSError:  # no such list on this system
        return _alive(pid) if os.name == "posix" else None  # elsewhere 0 is a signal that ends it
    return any(
        words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)
        for words in listed
        if len(words) > 5
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # no signal: only whether it could be sent
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
