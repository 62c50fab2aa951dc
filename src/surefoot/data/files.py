"""Rows out of one file.

1. The bytes are hashed and the rows counted, once, when the file is opened.
2. Each reader is a generator that starts over when called again; JSONL, CSV and Parquet are read lazily.
3. A fault of one row is yielded in its place and the rows after it are read; one of the file is raised.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from surefoot.data.badrows import RowError
from surefoot.data.jsonrows import document, document_rows, jsonl_rows
from surefoot.data.lines import CHUNK_BYTES, count_rows, opened
from surefoot.data.rows import Row
from surefoot.data.tables import csv_rows, parquet_length, parquet_rows
from surefoot.errors import UserError

LINES, JSON, TABLE, PARQUET = "JSONL", "JSON", "CSV", "Parquet"
SUFFIXES = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": JSON,
    ".csv": TABLE,
    ".tsv": TABLE,
    ".parquet": PARQUET,
}


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again."""

    name: str
    """What messages call it: the path as given, the hub's name, or "dataset"."""
    length: int | None
    """How many rows there are, bad ones too; None for a stream."""
    fingerprint: str
    """sha256 of the (uncompressed) bytes or of the rows as JSON, a `Dataset`'s own; "" for a stream."""
    rows: Callable[[], Iterator[Row | RowError]] = field(repr=False, compare=False)
    """All rows from the first; a bad one is the error that says what is wrong with it."""

    def __iter__(self) -> Iterator[Row]:
        """The rows; raises RowError at the first bad one."""
        for row in self.rows():
            if isinstance(row, RowError):
                raise row
            yield row


def kind_of(path: Path) -> str | None:
    """Which reader a file's name asks for (`.gz` may follow, but not for Parquet), or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = SUFFIXES.get("".join(suffixes[-2:-1]))
        return None if kind == PARQUET else kind
    return SUFFIXES.get("".join(suffixes[-1:]))


def open_file(path: Path, name: str) -> Source:
    """The rows of one file of a known suffix. Raises UserError when it cannot be read or has no rows."""
    kind = kind_of(path)
    with opened(path, name) as stream:
        first = stream.read(len(codecs.BOM_UTF16))
    if not first:
        raise UserError(f"{name}: the file is empty. Write at least one row into it.")
    if kind != PARQUET and first in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise UserError(f"{name}: the file is UTF-16, not UTF-8. Save it as UTF-8.")
    if kind == JSON:
        raw = document(path, name)
        rows = document_rows(raw, name)
        if rows is not None:
            return _with_rows(name, len(rows), hashlib.sha256(raw).hexdigest(), lambda: iter(rows))
        kind = LINES  # many files on the hub are JSONL under the name of .json
    if kind == LINES:
        length, digest = _count_lines(path, name)
        return _with_rows(name, length, digest, lambda: jsonl_rows(path, name))
    digest = _digest(path, name)
    if kind == PARQUET:
        return _with_rows(name, parquet_length(path, name), digest, lambda: parquet_rows(path, name))
    length = sum(1 for _ in csv_rows(path, name))
    return _with_rows(name, length, digest, lambda: csv_rows(path, name))


def _with_rows(name: str, length: int, digest: str, rows: Callable[[], Iterator[Row | RowError]]) -> Source:
    if not length:
        raise UserError(f"{name}: the file holds no rows. Write at least one row into it.")
    return Source(name, length, digest, rows)


def _digest(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with opened(path, name) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _count_lines(path: Path, name: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    with opened(path, name) as stream:
        length = count_rows(stream, digest.update)
    return length, digest.hexdigest()
