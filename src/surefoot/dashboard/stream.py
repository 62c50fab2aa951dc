"""Server-sent events: what pages are told while they are open, one stream a page.

Of one run: `more` with what has come, its id the byte of the events up to which it is told, so that a browser that
lost the stream goes on there; `state` when the run stands elsewhere; `anew` when the page must be read again:
the run went back to a checkpoint, was begun anew, or has gone on by too much meanwhile.

Of the list: `runs` with the lines that changed, `gone` with ids.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from anyio import to_thread

from surefoot.dashboard.index import Index
from surefoot.dashboard.library import Entry, Library, differing, summary
from surefoot.dashboard.pages import UNREADABLE, delta, slides
from surefoot.dashboard.state import state_of
from surefoot.report.parcel import as_json
from surefoot.report.records import FILE

LOOK_SECONDS = 0.25
"""Between two looks at a run that a page shows."""
STATE_SECONDS = 1.0
LIST_SECONDS = 1.0
SEARCH_SECONDS = 5.0
"""Between two searches for new runs."""
QUIET_SECONDS = 15.0
"""After which something is sent so that nobody thinks the line dead."""


def message(event: str, content: Any, offset: int | None = None) -> str:
    """One server-sent event."""
    number = "" if offset is None else f"id: {offset}\n"
    # Half of a surrogate pair has no UTF-8; as an escape it is JSON.
    data = as_json(content).encode("utf-8", "backslashreplace").decode()
    return f"event: {event}\n{number}data: {data}\n\n"


async def of_run(entry: Entry, index: Index, file: str, offset: int) -> AsyncIterator[str]:
    """What comes to one run after this byte of this file, until the page must be read anew."""
    yield "retry: 1000\n\n"
    with suppress(*UNREADABLE):  # why, is what reading it anew tells
        async for told in _more(entry, index, file, offset):
            yield told
    yield message("anew", {})


async def _more(entry: Entry, index: Index, file: str, offset: int) -> AsyncIterator[str]:
    told_state: dict[str, Any] = {}
    looked = spoke = 0.0
    while True:
        now = time.monotonic()
        await to_thread.run_sync(index.grow)
        if index.identity != file or offset > index.offset:
            return
        if index.offset > offset:
            told = await to_thread.run_sync(delta, index, offset)
            # Meanwhile another page may have found that the file is another.
            if told is None or told["offset"] < offset or index.identity != file:
                return
            offset, spoke = told["offset"], now
            if any(event["type"] == "slide" for event in told["events"]):
                told["slides"] = await to_thread.run_sync(slides, entry)
            yield message("more", told, offset)
        if now - looked >= STATE_SECONDS:
            state = (await to_thread.run_sync(state_of, index)).to_dict()
            if state != told_state:
                told_state, spoke = state, now
                yield message("state", state)
            looked = now
        if now - spoke >= QUIET_SECONDS:
            spoke = now
            yield ": still here\n\n"
        await asyncio.sleep(LOOK_SECONDS)


async def of_list(library: Library) -> AsyncIterator[str]:
    """All runs, each as soon as it is read, the ones that changed last first; then what changes."""
    told: dict[str, dict[str, Any]] = {}
    marks: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    searched = spoke = 0.0
    entries: list[Entry] = []
    yield "retry: 1000\n\n"
    while True:
        now = time.monotonic()
        if now - searched >= SEARCH_SECONDS or not searched:
            entries = await to_thread.run_sync(_newest_first, library)
            searched = now
            if gone := sorted(set(told) - {entry.id for entry in entries}):
                for run in gone:
                    del told[run]
                yield message("gone", gone)
            if not told:
                yield message("found", len(entries))
        for entry in entries:
            before = (marks.get(entry.id), told.get(entry.id))
            marks[entry.id], line = await to_thread.run_sync(_line, library, entry, *before)
            if line != told.get(entry.id):
                told[entry.id], spoke = line, time.monotonic()
                yield message("runs", [line])
        seen = {entry.id: library.brief(entry).config_at for entry in entries}
        if seen != configs:
            configs = seen
            yield message("differs", differing({entry.id: library.brief(entry).config for entry in entries}))
        if now - spoke >= QUIET_SECONDS:
            spoke = now
            yield ": still here\n\n"
        await asyncio.sleep(LIST_SECONDS)


def _newest_first(library: Library) -> list[Entry]:
    def changed(entry: Entry) -> float:
        try:
            return (entry.folder / FILE).stat().st_mtime
        except OSError:
            return 0.0

    return sorted(library.look(), key=changed, reverse=True)


def _line(
    library: Library, entry: Entry, mark: Any, told: dict[str, Any] | None
) -> tuple[Any, dict[str, Any]]:
    """What the line is made of, and the line. Of a run that has not gone on since `told`, with that `mark`, only
    where it stands is looked at again: the rest takes longer with every step."""
    index = library.brief(entry)
    try:
        index.grow()
        now = (index.identity, index.offset, index.config_at)
        if told is not None and now == mark:
            return now, {**told, "state": state_of(index).to_dict()}
        return now, summary(entry, index)
    except UNREADABLE:  # its page says why
        return None, summary(entry, Index(entry.folder, brief=True))
