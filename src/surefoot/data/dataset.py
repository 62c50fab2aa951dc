"""A source of rows → the examples of a data set, by row, with the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from surefoot.data.formats import Format, detect, to_record
from surefoot.data.ledger import Ledger
from surefoot.data.render import Renderer
from surefoot.data.rows import Example, Record, Row
from surefoot.data.sources import Source
from surefoot.errors import UserError

Formatting = Callable[..., object]
"""A user's function from a row's columns to a row of a known shape, or to plain text."""


@dataclass(frozen=True)
class Dataset:
    """Examples grouped by row. Rows of which nothing is left are in the ledger only."""

    rows: tuple[tuple[Example, ...], ...]
    ledger: Ledger
    fingerprint: str

    @property
    def examples(self) -> list[Example]:
        return [example for row in self.rows for example in row]

    def of_rows(self, rows: Sequence[int]) -> list[Example]:
        """All examples of the given rows, in that order."""
        return [example for row in rows for example in self.rows[row]]


def read(
    source: Source,
    renderer: Renderer,
    *,
    columns: dict[str, str],
    text_field: str = "text",
    formatting: Formatting | None = None,
    at_most: int | None = None,
    seen: Callable[[int], None] = lambda rows: None,
) -> Dataset:
    """Read, recognise, render and tokenise every row of `source`.

    `at_most` stops once so many rows have something to learn (for streams); `seen` is told how many rows are
    through. Raises UserError when there is nothing to learn in any row.
    """
    rows: list[list[Example]] = []
    last = -1
    records = _records(source, renderer.ledger, columns, text_field, formatting)
    for example in renderer.examples(records, at_most):
        if example.row != last:
            rows.append([])
            last = example.row
            seen(example.row + 1)
        rows[-1].append(example)
    if not rows:
        raise UserError(_nothing(renderer.ledger))
    return Dataset(tuple(map(tuple, rows)), renderer.ledger, source.fingerprint)


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
