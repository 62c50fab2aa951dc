"""Rows of CSV and of Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from surefoot.data.badrows import RowError
from surefoot.data.lines import LONGEST_ROW, NotTextError, as_text, column, lines, opened
from surefoot.data.rows import Row
from surefoot.data.strictjson import beginning
from surefoot.errors import UserError


class _Text:
    """The lines of a file for the csv module, and what was wrong with those of the record being read."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.fault: tuple[str, str] | None = None
        """Kind and message of the record's first fault."""
        self._stream = stream
        self._name = name
        self._held = 0

    def next_record(self) -> None:
        self.fault = None
        self._held = 0

    def __iter__(self) -> Iterator[str]:
        for number, offset, raw, length in lines(self._stream):
            self._held += length
            if self._held > LONGEST_ROW:
                raise UserError(
                    f"{self._name}:{number}: more than {LONGEST_ROW:,} bytes in one record. Is a quote never "
                    f"closed? Split the record, or write the rows as .jsonl. The line begins: "
                    f"{beginning(raw[:1000].decode('utf-8', 'replace'))}"
                )
            try:
                yield as_text(raw)
            except NotTextError as error:
                place = f"{self._name}:{number}:{column(raw, error.at)}"
                said = f"{place}: {error.fault} at byte offset {offset + error.at}. {error.fix}"
                self.fault = self.fault or (error.kind, said)
                yield raw.decode("utf-8", "replace").replace("\0", "�")


def csv_rows(path: Path, name: str) -> Iterator[Row | RowError]:
    """A row for each record after the header, named by the line it begins in."""
    csv.field_size_limit(LONGEST_ROW)  # the module's own 128 KiB is less than a long document
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    header: list[str] | None = None
    with opened(path, name) as stream:
        text = _Text(stream, name)
        reader = csv.reader(text, delimiter="\t" if tabs else ",", strict=True)
        while True:
            start = reader.line_num + 1
            text.next_record()
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"{name}:{start}: not a valid record: {error}. Quote a field that holds separators, "
                    f'quotes or line breaks, and double the quotes in it: "say ""hi""".'
                ) from None
            if fields is None:
                return
            if header is not None and (fields or text.fault):
                yield _row(fields, header, f"{name}:{start}", text.fault)
            elif fields:
                if text.fault:
                    raise UserError(text.fault[1])
                header = fields
                _check_header(header, name, start, tabs)


def _row(fields: list[str], header: list[str], where: str, fault: tuple[str, str] | None) -> Row | RowError:
    if fault:
        return RowError(where, fault[0], f"{fault[1]} The record begins: {beginning(fields)}")
    if len(fields) != len(header):
        return RowError(
            where,
            "wrong number of fields",
            f"{where}: {len(fields)} fields where the header has {len(header)} "
            f"({beginning(', '.join(header))}). Quote a field that holds separators or line breaks. "
            f"The record begins: {beginning(fields)}",
        )
    return Row(dict(zip(header, fields, strict=True)), where)


def _check_header(header: list[str], name: str, line: int, tabs: bool) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(
            f"{name}:{line}: the header names {beginning(', '.join(map(repr, twice)))} twice. "
            f"Give each column its own name."
        )
    other = "," if tabs else next((mark for mark in "\t;|" if mark in header[0]), "\0")
    if len(header) == 1 and other in header[0]:
        wanted = "tabs, or name the file .csv" if tabs else "commas, or name a file with tabs .tsv"
        raise UserError(f"{name}:{line}: the header's columns are separated by {other!r}. Use {wanted}.")


def _parquet_file(path: Path, name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{name}: reading Parquet needs pyarrow: pip install pyarrow.") from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> UserError:
    reason = beginning((str(error).splitlines() or ["no reason given"])[0].rstrip("."), 400)
    return UserError(f"{name}: not a readable Parquet file: {reason}. Write or download it again.")


def parquet_length(path: Path, name: str) -> int:
    with _parquet_file(path, name) as file:
        return file.metadata.num_rows


def parquet_rows(path: Path, name: str) -> Iterator[Row | RowError]:
    """The rows, a batch at a time, without the nulls that Arrow filled in."""
    index = 0
    with _parquet_file(path, name) as file:
        import pyarrow

        try:
            for batch in file.iter_batches(batch_size=256):
                for row in _batch(batch, name, index):
                    yield row
                    index += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(name, error) from None


def _batch(batch: Any, name: str, first: int) -> Iterator[Row | RowError]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):  # one of them; which, the rows one by one tell
        rows = None
    for number in range(len(batch)):
        where = f"{name}[{first + number}]"
        try:
            data = rows[number] if rows is not None else batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            said = f"{where}: a string is not UTF-8 (byte {error.start} of it: {error.reason}). Write it as UTF-8."
            yield RowError(where, "not UTF-8", f"{said} The string begins: {beginning(_shown(error.object))}")
        except (ValueError, OverflowError) as error:
            said = f"{where}: a value cannot be read: {error}. Write it as text or a number."
            yield RowError(where, "unreadable value", said)
        else:
            yield Row({column: without_filled_nulls(value) for column, value in data.items()}, where)


def _shown(raw: bytes) -> str:
    return raw[:1000].decode("utf-8", "replace")


def without_filled_nulls(value: Any) -> Any:
    """`value` without the keys that Arrow added as null because another row has them."""
    if isinstance(value, dict):
        return {key: without_filled_nulls(item) for key, item in value.items() if item is not None}
    # expensive: long lists of token ids come through here, so one look decides for plain ones
    if isinstance(value, list) and value and not isinstance(value[0], int | str | float):
        return [without_filled_nulls(item) for item in value]
    return value
