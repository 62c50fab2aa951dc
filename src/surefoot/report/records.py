"""The records of an events.jsonl, from any byte on: whole lines only, what is no record is named and left out.

This is how everything that looks at a run reads it, while it trains or after; the trainer has its own, stricter way
(`runfolder`), for it goes on from what it reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from surefoot.errors import UserError
from surefoot.regular import open_regular
from surefoot.runfolder import MOST_RECORD

MOST_EVENTS = 1 << 31
"""Bytes of all records."""
MOST_PROBLEMS = 100
"""From then on it is no run."""
FILE = "events.jsonl"


def lines(path: Path, problems: list[str], start: int = 0) -> Iterator[tuple[int, bytes]]:
    """(byte offset, line) of every whole line from byte `start` on.

    A last line without its end is being written, or was cut off by a crash: it is not among them. A line that is
    too long, a file that is too large or cannot be read: said in `problems`, and the rest is left out.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            at = start
            while line := file.readline(MOST_RECORD + 1):
                if len(line) > MOST_RECORD or at > MOST_EVENTS:
                    problems.append(f"{FILE} is larger than a run's can be; the rest is left out")
                    return
                if not line.endswith(b"\n"):
                    return
                yield at, line
                at += len(line)
    except (OSError, UserError) as error:
        problems.append(f"{FILE} cannot be read: {error}")


def parsed(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError, in words, when it is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("cannot be read; it is left out") from None
    if isinstance(event, dict) and isinstance(event.get("type"), str) and is_step(event.get("step")):
        return event
    raise ValueError("no record of a type and a step; it is left out")


def read_events(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Every record of the file, in order."""
    end, cut = 0, list[str]()
    for number, (at, line) in enumerate(lines(path, cut), 1):
        end = at + len(line)
        if len(problems) > MOST_PROBLEMS:
            problems.append(f"{FILE}: the rest is not read, for it is no run's")
            return
        try:
            yield parsed(line)
        except ValueError as error:
            problems.append(f"{FILE}:{number}: {error}")
    with suppress(OSError):
        if not cut and path.stat().st_size > end:
            cut.append(f"{FILE}: the last record is not complete; it is left out")
    problems += cut


def is_step(value: Any) -> bool:
    """Whether this can be the number of a step."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def number(value: Any) -> float | None:
    """A number of a record, None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # what JSON's 1e999 is, too
        return math.inf if value > 0 else -math.inf
