"""A source of rows → the examples of a data set, by row, with the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np

from surefoot.data.badrows import BadRows, OnBadRow, RowError
from surefoot.data.cache import Spool, find, key
from surefoot.data.formats import Format, detect, to_record
from surefoot.data.ledger import Ledger
from surefoot.data.messages import problem
from surefoot.data.render import Renderer
from surefoot.data.rows import Example, Record, Row
from surefoot.data.sharing import Party, runs
from surefoot.data.sources import Source
from surefoot.data.store import Stored
from surefoot.data.turns import NO_QUESTION, NO_TOKEN, NO_TOOL_CALLS, NO_TURN
from surefoot.errors import UserError
from surefoot.ranks import Elsewhere, rank, ranks, texts

Formatting = Callable[..., object]
"""A user's function from a row's columns to a row of a known shape, or to plain text."""


LOOKED_AT = 1_000
"""Rows without a known shape after which no other is expected to have one."""
WORTH_SECONDS = 1.0
"""What is tokenised quicker than this is not kept for the next run."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples grouped by row, read from the disk as they are asked for.

    Rows of which nothing is left are in the ledger only.
    """

    stored: Stored
    ledger: Ledger
    fingerprint: str
    from_cache: bool = False
    """Nothing was tokenised: an earlier run has kept these examples."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the examples are kept."""

    @property
    def rows(self) -> Sequence[tuple[Example, ...]]:
        return self.stored.rows

    @property
    def examples(self) -> Sequence[Example]:
        return self.stored.examples

    @property
    def lengths(self) -> np.ndarray:
        """int32 [examples]: tokens of each example, without reading any."""
        return self.stored.lengths

    def to_dict(self) -> dict[str, Any]:
        """What run.json says of it: hashes of the rows and of what is learned of them, and the ledger."""
        return {
            "fingerprint": self.fingerprint,
            "examples": self.stored.digest(),
            "ledger": self.ledger.to_dict(),
        }

    def some(self, most: int) -> list[Example]:
        """At most `most` examples: the first ones, and the longest of all."""
        longest = int(self.lengths.argmax())
        return [*self.examples[: most - 1], *([self.examples[longest]] if longest >= most - 1 else [])]

    def of_rows(self, rows: Sequence[int]) -> list[Example]:
        """All examples of the given rows, in that order."""
        of = self.rows
        return [example for row in rows for example in of[row]]


def read(
    source: Source,
    renderer: Renderer,
    *,
    columns: dict[str, str],
    text_field: str = "text",
    formatting: Formatting | None = None,
    at_most: int | None = None,
    on_bad_row: OnBadRow = "stop",
    seen: Callable[[int], None] = lambda rows: None,
    cache: Path | None = None,
    worth_seconds: float = WORTH_SECONDS,
    waits: Callable[[str], None] = lambda late: None,
) -> Dataset:
    """Read, recognise, render and tokenise every row of `source`; or find all that in `cache`.

    `at_most` stops once so many rows have something to learn (for streams); `seen` is told how many rows are
    through. `on_bad_row`: stop raises the first bad rows together, once all are read; skip drops each, and the
    ledger says why. What took `worth_seconds` is kept in the folder `cache` (nowhere if it is None), but not what a
    stream or a `formatting` function gave: whether they would give it again is not known.
    Of several ranks, one of each machine does so for all of it; `waits` is told now and then which other machines
    it waits for. A stream, and what a `formatting` function makes, are taken to be the same on all ranks.
    Raises UserError when there is nothing to learn in any row, and when ranks have not the same rows.
    """

    def make(party: Party | None) -> Dataset:
        started, keep_as = time.perf_counter(), None
        if cache is not None and formatting is None:
            keep_as = key(
                source,
                renderer,
                {"columns": columns, "text_field": text_field, "at_most": at_most, "on_bad_row": on_bad_row},
            )
            if keep_as is not None and (found := find(cache / keep_as)) is not None:
                data = Dataset(*found, source.fingerprint, from_cache=True)
                return _shared(data, cache / keep_as, party)
        ledger, last = renderer.ledger, -1
        bad = BadRows(ledger, on_bad_row)
        with Spool(cache, shared=party is not None and party.others > 0) as spool:
            said = records(source, ledger, columns, text_field, formatting)
            if party is not None:
                said = party.counted(said)
            for example in renderer.examples(said, at_most, bad):
                if example.row != last:
                    last = example.row
                    seen(last + 1)
                if not bad.count:
                    spool.add(example)
            bad.check(ledger.rows)
            if not len(spool):
                raise UserError(_nothing(ledger))
            if time.perf_counter() - started < worth_seconds:
                keep_as = None
            stored = spool.finish(ledger, keep_as)
            data = Dataset(stored, ledger, source.fingerprint, notes=tuple(spool.notes))
            return _shared(data, spool.place, party)

    if ranks() == 1:
        return make(None)
    party = Party(f"{source.length} {source.fingerprint}")
    return _agreed(source.name, party.hosts, party.read(lambda: make(party), _taken, waits))


def _shared(data: Dataset, place: Path | None, party: Party | None) -> Dataset:
    """The same, once this rank's party has it too: it stands in the folder `place` until then."""
    if party is None:
        return data
    digest = data.stored.digest()
    about = {"folder": str(place), "digest": digest, "fingerprint": data.fingerprint, "notes": data.notes}
    party.share(about | {"from_cache": data.from_cache})
    return replace(data, stored=replace(data.stored, known_digest=digest))


def _taken(about: Mapping[str, Any]) -> Dataset:
    """What another process has shared."""
    found = find(Path(about["folder"]))
    if found is None:
        raise UserError(
            f"{about['folder']}: the tokenised rows that another process on {gethostname()} has written there "
            "cannot be read. Let all processes of a machine see the same files, or set XDG_CACHE_HOME to a folder "
            "that they share."
        )
    stored = replace(found[0], known_digest=about["digest"])
    return Dataset(stored, found[1], about["fingerprint"], about["from_cache"], tuple(about["notes"]))


def _agreed(name: str, hosts: Sequence[str], data: Dataset) -> Dataset:
    """The same on all ranks, with the first one's fingerprint and everybody's notes. Raises UserError on all when
    what is learned differs."""
    of_files = ("source", "shape", "dropped", "noted")  # how a path is written may differ
    counts = {key: count for key, count in data.ledger.to_dict().items() if key not in of_files}
    own = {
        "name": name,
        "rows": f"{data.ledger.rows:,} rows, {data.ledger.examples:,} examples",
        "fingerprint": data.fingerprint,
        "examples": data.stored.digest(),
        "counts": counts,
        "notes": data.notes,
    }
    said: list[dict[str, Any]] = [json.loads(text) for text in texts(json.dumps(own))]
    alike: dict[str, list[int]] = {}
    for number, one in enumerate(said):
        alike.setdefault(json.dumps([one["examples"], one["counts"]], sort_keys=True), []).append(number)
    if len(alike) > 1:
        lines = []
        for found in alike.values():
            at, one = ", ".join(dict.fromkeys(hosts[number] for number in found)), said[found[0]]
            who = f"rank{'s'[: len(found) > 1]} {runs(found)} on {at}"
            hashes = f"fingerprint {one['fingerprint'] or '(a stream)'}, examples {one['examples']}"
            lines.append(f"  {who}: {one['rows']}, {hashes}")
        lines.insert(0, f"{said[0]['name']}: the ranks do not have the same rows:")
        lines.append(
            "Give every rank all rows, in the same order: the same file on each machine, and nothing that was "
            "split or shuffled by rank; surefoot divides each step among the ranks."
        )
        raise (UserError if rank() == 0 else Elsewhere)("\n".join(lines))
    notes = tuple(dict.fromkeys(note for one in said for note in one["notes"]))
    return replace(data, fingerprint=said[0]["fingerprint"], notes=notes)


def records(
    source: Source,
    ledger: Ledger,
    columns: dict[str, str],
    text_field: str = "text",
    formatting: Formatting | None = None,
) -> Iterator[tuple[Record | RowError, str]]:
    """What each row says, or its error, and where it stands; the first row that is right decides the shape."""
    ledger.source = source.name
    shape: Format | None = None
    unknown = 0
    first: RowError | None = None
    for row in source.rows():
        try:
            if isinstance(row, RowError):
                raise row
            if formatting is not None:
                row = _formatted(row, formatting)
            try:
                found = shape or detect(row, columns, text_field)
            except RowError as error:
                first, unknown = first or error, unknown + 1
                if unknown == LOOKED_AT:
                    break
                raise
            record = to_record(row, found)
        except RowError as error:
            yield error.with_traceback(None), error.where
        else:
            if shape is None:
                shape = found
                ledger.shape = shape.describe()
            yield record, row.where
    if shape is None and first is not None and unknown > 1:
        among = "first " if unknown == LOOKED_AT else ""
        raise UserError(f"{first} None of the {among}{unknown:,} rows that can be read has a known shape.")


def _formatted(row: Row, formatting: Formatting) -> Row:
    made = formatting(dict(row.data))
    if isinstance(made, str):
        made = {"text": made}
    if isinstance(made, dict) and all(isinstance(column, str) for column in made):
        return Row(made, row.where)
    got = "a dict with other keys than strings" if isinstance(made, dict) else type(made).__name__
    raise problem(
        row, "wrong type", f"formatting_func returned {got}; it must return a text or a dict of columns."
    )


def _nothing(ledger: Ledger) -> str:
    if not ledger.rows:
        return f"{ledger.source}: there are no rows. Write at least one."
    reasons = "; ".join(
        f"{ledger.counts[reason]:,} × {reason} ({places[0]}{', ...' if len(places) > 1 else ''})"
        for reason, places in ledger.dropped.items()
    )
    fixes = dict.fromkeys(_fix(reason) for reason in ledger.dropped)
    return f"{ledger.source}: nothing to learn in any of {ledger.rows:,} rows: {reasons}. {' '.join(fixes)}"


def _fix(reason: str) -> str:
    if "max_length" in reason:
        return "Raise max_length, or shorten the rows."
    if reason == NO_TOKEN:
        return "Write rows with an answer; in rows of token ids, mark the tokens to learn."
    if reason in (NO_TURN, NO_QUESTION):
        return "Write conversations in which an assistant message follows a user's."
    if reason == NO_TOOL_CALLS:
        return "Pass a template that writes them."
    return "on_bad_row=stop says what is wrong with each row."
