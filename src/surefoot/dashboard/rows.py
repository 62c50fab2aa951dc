"""Rows of a run for its page: the worst ones, and one to read, with its losses at each visit and of its tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Any

from surefoot.dashboard.library import Entry
from surefoot.errors import UserError
from surefoot.microscope.slide import Opened
from surefoot.report.page import worst_page
from surefoot.report.records import FILE, read_events
from surefoot.report.texts import read_texts
from surefoot.runfolder import RunFolder, numbered

KEPT = 16
MOST_VISITS = 5_000
MOST_SLIDES = 200
"""Slides, from the newest, that are searched for a row."""


class Worst:
    """The worst rows of runs. Finding them reads all of the events, so what was found is kept until they grow."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()
        self._lock = Lock()

    def of(self, entry: Entry) -> dict[str, Any]:
        """{worst: tables, worst_note, problems, read: bytes of the events that were read}."""
        path = entry.folder / FILE
        size = path.stat().st_size if path.is_file() else 0
        with self._lock:
            kept = self._kept.get(entry.id)
        if kept is not None and kept[0] == size:
            return kept[1]
        problems: list[str] = []
        found = {
            **worst_page(entry.folder, read_events(path, []), problems),
            "problems": [entry.told(problem) for problem in problems],
            "read": size,
        }
        found["worst_note"] = _note(entry, found["worst_note"])
        with self._lock:
            self._kept[entry.id] = (size, found)
            self._kept.move_to_end(entry.id)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


def row(entry: Entry, where: str) -> dict[str, Any]:
    """One row: {where, text, note, visits: [{step, loss, tokens}], examples: [{step, example}] from slides}."""
    texts = read_texts(RunFolder(entry.folder), {where}, files_only=True)
    return {
        "where": where,
        "text": texts.whole.get(where),
        "note": _note(entry, texts.note),
        "visits": list(_visits(entry, where))[:MOST_VISITS],
        "examples": list(_opened(entry, where)),
    }


def _note(entry: Entry, note: str | None) -> str | None:
    return None if note is None else entry.told(note)


def _visits(entry: Entry, where: str) -> Iterator[dict[str, Any]]:
    """Loss is the mean −log p over the row's supervised tokens at that step."""
    for event in read_events(entry.folder / FILE, []):
        examples = event.get("examples") if event["type"] == "step" else None
        cost, tokens = 0.0, 0
        for example in examples if isinstance(examples, list) else ():
            match example:
                case [str(place), int() | float() as loss, int(count)] if place == where:
                    cost, tokens = cost + loss, tokens + count
        if tokens > 0:
            yield {"step": event["step"], "loss": cost / tokens, "tokens": tokens}


def _opened(entry: Entry, where: str) -> Iterator[dict[str, Any]]:
    """The row's examples in opened steps, newest first: there, every token's loss is known."""
    for step, path in list(numbered(entry.folder / "slides"))[: -MOST_SLIDES - 1 : -1]:
        try:
            opened = Opened.load(path)
        except UserError:
            continue
        for example in opened.slide.batch.examples:
            if example.where == where:
                yield {"step": step, "example": example.model_dump(mode="json")}
