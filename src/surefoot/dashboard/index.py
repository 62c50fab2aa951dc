"""What a run's events have told so far, kept in memory and grown by what was appended since.

1. `grow` reads the whole lines that have come, from the byte it knows on.
2. A step becomes a row of numbers, with the byte at which its line ends; so does, of a record of the tensors, its
   place; everything else is kept as it is.
3. `since(byte)` tells what came after any byte: a page that slept, or a server that starts anew, goes on there.

A brief index keeps of each step the loss alone, found without parsing the line: a list of many runs needs no more.
"""

from __future__ import annotations

import hashlib
import re
import threading
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.report.columns import STEP_COLUMNS, Columns
from surefoot.report.records import FILE, MOST_PROBLEMS, is_step, lines, parsed
from surefoot.report.runs import read_config, with_resumed

STEP, TENSORS = b'{"type": "step", "step": ', b'{"type": "tensors", "step": '
"""How the trainer begins these records; one that begins otherwise is parsed as a whole."""
EXAMPLES, EXAMPLES_END = b', "examples": [', b"]"
NUMBER = re.compile(rb"(\d+), ")
BRIEF = re.compile(
    rb'(\d+), "time": ([\d.e+-]+), "epoch": [\d.e+-]+, "loss": (-?[\d.e+-]+|NaN|-?Infinity), '
    rb'[^\[]*?"num_tokens": (\d+), '
)
BRIEF_COLUMNS = ("step", "time", "loss", "num_tokens")
MOST_OTHERS = 200_000
"""Records, besides steps and tensors, that a run is shown with; later ones are left out and said so."""
BRIEFLY = ("start", "eval", "alert", "slide", "end")


@dataclass(frozen=True)
class Since:
    """What came after a byte of the events."""

    offset: int
    """Where the next whole line will begin."""
    first_step: int
    """Row of the columns with which what is new begins."""
    others: list[dict[str, Any]]
    tensors: list[int]
    """Which records of the tensors are new, counted from 0."""


class Index:
    """The records of one run folder. Every method may be called from any thread."""

    def __init__(self, folder: Path, *, brief: bool = False) -> None:
        self.folder, self.brief = folder, brief
        self.lock = threading.RLock()
        self.config_at: tuple[int, int] | None = None
        """Time and size of the run.json that was read: what changes with it."""
        self.config: dict[str, Any] = {}
        self._config_problems: list[str] = []
        self._begin("")

    def _begin(self, identity: str) -> None:
        """Forget everything: the file is another."""
        self.identity = identity
        """Of the file: changes when the run is begun anew, or goes back to a checkpoint and on from there."""
        self.offset = 0
        self.steps = Columns(BRIEF_COLUMNS if self.brief else STEP_COLUMNS)
        self.others: list[dict[str, Any]] = []
        self.tensors: list[tuple[int, int]] = []
        """(step, byte) of each record of the tensors."""
        self.problems: list[str] = []
        self.last: dict[str, Any] = {}
        """The last step's record, without its examples."""
        self._step_ends, self._other_ends, self._tensors_ends = array("q"), array("q"), array("q")

    # Reading -----------------------------------------------------------------------------------------------

    def grow(self) -> bool:
        """Read what has come; true if the file is another one than before, so that pages must begin anew."""
        with self.lock:
            path = self.folder / FILE
            self._read_config()
            identity = self._identity(path)
            try:
                size = path.stat().st_size
            except OSError:
                size = 0
            another = identity != self.identity or size < self.offset
            if another:
                self._begin(identity)
            if size > self.offset:
                self._read(path)
            return another

    def _identity(self, path: Path) -> str:
        """The first record tells when the run began; run.json, how often it went on."""
        first = next(lines(path, []), (0, b""))[1]
        resumed = self.config.get("resumed")
        times = len(resumed) if isinstance(resumed, list) else 0
        return hashlib.sha256(first).hexdigest()[:16] + f"-{times}" if first else ""

    def _read_config(self) -> None:
        path = self.folder / "run.json"
        try:
            about = path.stat()
            at = (about.st_mtime_ns, about.st_size)
        except OSError:
            at = None
        if at != self.config_at or at is None:
            self._config_problems = []
            self.config = read_config(path, self._config_problems)
            self.config_at = at

    def _read(self, path: Path) -> None:
        last, problems = b"", []
        for at, line in lines(path, problems, self.offset):
            self.offset = at + len(line)
            if len(self.problems) > MOST_PROBLEMS:
                self._say(f"{FILE}: the rest is not read, for it is no run's")
                continue
            try:
                if line.startswith(STEP):
                    self._step(line)
                    last = line
                elif line.startswith(TENSORS) and (step := NUMBER.match(line, len(TENSORS))):
                    self.tensors.append((int(step[1]), at))
                    self._tensors_ends.append(self.offset)
                else:
                    self._other(parsed(line), at)
            except ValueError as error:
                self._say(f"{FILE}, byte {at:,}: {error}")
        for problem in problems:
            self._say(problem)
        if last:
            self._keep_last(last)

    def _say(self, problem: str) -> None:
        """Once: the same is found at every look."""
        if problem not in self.problems:
            self.problems.append(problem)

    def _step(self, line: bytes) -> None:
        found = BRIEF.match(line, len(STEP)) if self.brief else None
        if found and len(found[1]) < 16:  # no longer than a step's number can be
            step, *others = found.groups()
            self._add(dict(zip(BRIEF_COLUMNS, (int(step), *map(float, others)), strict=True)))
        else:
            self._add(parsed(_without_examples(line)))

    def _keep_last(self, line: bytes) -> None:
        try:
            self.last = parsed(_without_examples(line))
        except ValueError:
            return  # said where it was read

    def _add(self, record: dict[str, Any]) -> None:
        if self.steps.append(record):
            self._step_ends.append(self.offset)
        else:
            raise ValueError("a step that does not come after the one before; it is left out")

    def _other(self, event: dict[str, Any], at: int) -> None:
        match event["type"]:
            case "step":
                self._add(event)
                self.last = {key: value for key, value in event.items() if key != "examples"}
            case "tensors":
                self.tensors.append((event["step"], at))
                self._tensors_ends.append(self.offset)
            case kind if not self.brief or kind in BRIEFLY:
                if len(self.others) == MOST_OTHERS:
                    self._say(
                        f"{FILE}: more than {MOST_OTHERS:,} records besides steps; the rest is left out"
                    )
                    return
                self.others.append(event)
                self._other_ends.append(self.offset)

    # What it knows -----------------------------------------------------------------------------------------

    def all_problems(self) -> list[str]:
        """What could not be read, in words."""
        return [*self._config_problems, *self.problems]

    def events(self) -> list[dict[str, Any]]:
        """All records but steps and tensors, and a `start` where the run went on after a stop."""
        with self.lock:
            return with_resumed(list(self.others), self.config)

    def resumed_after(self) -> list[int]:
        """After which steps the run was stopped and went on."""
        told = self.config.get("resumed")
        entries = [entry for entry in told if isinstance(entry, dict)] if isinstance(told, list) else []
        return [int(entry["step"]) for entry in entries if is_step(entry.get("step"))]

    def since(self, offset: int) -> Since:
        """What came after this byte."""
        with self.lock:
            first_step = bisect_right(self._step_ends, offset)
            first_other = bisect_right(self._other_ends, offset)
            first_tensors = bisect_right(self._tensors_ends, offset)
            return Since(
                self.offset,
                first_step,
                self.others[first_other:],
                list(range(first_tensors, len(self.tensors))),
            )

    def tensor_records(self, which: list[int]) -> list[dict[str, Any]]:
        """These records of the tensors, read from the file again."""
        with self.lock:
            places = [self.tensors[i][1] for i in which if i < len(self.tensors)]  # another file by now?
        found = []
        for at in places:
            line = next(lines(self.folder / FILE, [], at), (0, b""))[1]
            try:
                found.append(parsed(line))
            except ValueError:
                continue  # the file is another by now; the next `grow` sees it
        return found

    @property
    def nbytes(self) -> int:
        """About what it takes in memory."""
        return (
            self.steps.nbytes + 8 * len(self._step_ends) + 1_000 * len(self.others) + 120 * len(self.tensors)
        )


def _without_examples(line: bytes) -> bytes:
    """The line of a step without its examples, which are most of it: losses of rows are read when asked for."""
    begin = line.find(EXAMPLES)
    end = line.rfind(EXAMPLES_END)
    return line[: begin + len(EXAMPLES)] + line[end:] if 0 < begin < end else line
