"""A source of rows → the examples of a data set, by row, with the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from surefoot.data.cache import Spool, find, key
from surefoot.data.formats import Format, detect, to_record
from surefoot.data.ledger import Ledger
from surefoot.data.render import Renderer
from surefoot.data.rows import Example, Record, Row
from surefoot.data.sources import Source
from surefoot.data.store import Stored
from surefoot.errors import UserError

Formatting = Callable[..., object]
"""A user's function from a row's columns to a row of a known shape, or to plain text."""


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
    seen: Callable[[int], None] = lambda rows: None,
    cache: Path | None = None,
    worth_seconds: float = WORTH_SECONDS,
) -> Dataset:
    """Read, recognise, render and tokenise every row of `source`; or find all that in `cache`.

    `at_most` stops once so many rows have something to learn (for streams); `seen` is told how many rows are
    through. What took `worth_seconds` is kept in the folder `cache` (nowhere if it is None), but not what a
    stream or a `formatting` function gave: whether they would give it again is not known.
    Raises UserError when there is nothing to learn in any row.
    """
    started, keep_as = time.perf_counter(), None
    if cache is not None and formatting is None:
        keep_as = key(source, renderer, {"columns": columns, "text_field": text_field, "at_most": at_most})
        if keep_as is not None and (found := find(cache / keep_as)) is not None:
            return Dataset(*found, source.fingerprint, from_cache=True)
    ledger, last = renderer.ledger, -1
    with Spool(cache) as spool:
        records = _records(source, ledger, columns, text_field, formatting)
        for example in renderer.examples(records, at_most):
            if example.row != last:
                last = example.row
                seen(last + 1)
            spool.add(example)
        if not len(spool):
            raise UserError(_nothing(ledger))
        if time.perf_counter() - started < worth_seconds:
            keep_as = None
        stored = spool.finish(ledger, keep_as)
    return Dataset(stored, ledger, source.fingerprint, notes=tuple(spool.notes))


def _records(
    source: Source,
    ledger: Ledger,
    columns: dict[str, str],
    text_field: str,
    formatting: Formatting | None,
) -> Iterator[tuple[Record, str]]:
    ledger.source = source.name
    shape: Format | None = None
    for row in source:
        if formatting is not None:
            row = _formatted(row, formatting)
        if shape is None:
            shape = detect(row, columns, text_field)
            ledger.shape = shape.describe()
        yield to_record(row, shape), row.where


def _formatted(row: Row, formatting: Formatting) -> Row:
    made = formatting(dict(row.data))
    if isinstance(made, str):
        made = {"text": made}
    if not isinstance(made, dict):
        raise UserError(
            f"{row.where}: formatting_func returned {type(made).__name__}; it must return a text or a dict"
        )
    return Row(made, row.where)


def _nothing(ledger: Ledger) -> str:
    if not ledger.rows:
        return f"{ledger.source}: there are no rows"
    reasons = "; ".join(f"{ledger.counts[reason]:,} × {reason}" for reason in ledger.dropped)
    return f"{ledger.source}: nothing to learn in any of {ledger.rows:,} rows: {reasons}"
