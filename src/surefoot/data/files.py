"""Rows out of one file.

1. The bytes are hashed and the rows counted, once, when the file is opened.
2. Each reader is a generator that starts over when called again; JSONL, CSV and Parquet are read lazily.
3. Bytes become text line by line, so that a fault is named by line, column and byte offset.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from surefoot.data.rows import Row
from surefoot.data.strictjson import JsonError, beginning, parse
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
CHUNK_BYTES = 1 << 20
LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again."""

    name: str
    """What messages call it: the path as given, the hub's name, or "dataset"."""
    length: int | None
    """None for a stream."""
    fingerprint: str
    """sha256 of the (uncompressed) bytes or of the rows as JSON, a `Dataset`'s own; "" for a stream."""
    rows: Callable[[], Iterator[Row]] = field(repr=False, compare=False)

    def __iter__(self) -> Iterator[Row]:
        return self.rows()


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
    with _readable(name), _bytes(path) as stream:
        if not stream.read(1):
            raise UserError(f"{name}: the file is empty. Write at least one row into it.")
    if kind == JSON:
        with _readable(name), _bytes(path) as stream:
            raw = stream.read()
        rows = _json_rows(raw, name)
        if rows is not None:
            return _with_rows(name, len(rows), hashlib.sha256(raw).hexdigest(), lambda: iter(rows))
        kind = LINES  # many files on the hub are JSONL under the name of .json
    if kind == LINES:
        length, digest = _count_lines(path, name)
        return _with_rows(name, length, digest, lambda: _jsonl_rows(path, name))
    digest = _digest(path, name)
    if kind == PARQUET:
        return _with_rows(name, _parquet_length(path, name), digest, lambda: _parquet_rows(path, name))
    length = sum(1 for _ in _csv_rows(path, name))
    return _with_rows(name, length, digest, lambda: _csv_rows(path, name))


def without_filled_nulls(value: Any) -> Any:
    """`value` without the keys that Arrow added as null because another row has them."""
    if isinstance(value, dict):
        return {key: without_filled_nulls(item) for key, item in value.items() if item is not None}
    # expensive: long lists of token ids come through here, so one look decides for plain ones
    if isinstance(value, list) and value and not isinstance(value[0], int | str | float):
        return [without_filled_nulls(item) for item in value]
    return value


def _with_rows(name: str, length: int, digest: str, rows: Callable[[], Iterator[Row]]) -> Source:
    if not length:
        raise UserError(f"{name}: the file holds no rows. Write at least one row into it.")
    return Source(name, length, digest, rows)


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{name}: not a whole gzip file ({error}). Compress it again, or give it uncompressed."
        ) from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}.") from None


def _bytes(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _digest(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    with _readable(name), _bytes(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _count_lines(path: Path, name: str) -> tuple[int, str]:
    digest, length = hashlib.sha256(), 0
    with _readable(name), _bytes(path) as stream:
        for number, line in enumerate(stream):
            digest.update(line)
            if number == 0:
                line = line.removeprefix(codecs.BOM_UTF8)
            length += not _is_blank(line)
    return length, digest.hexdigest()


def _is_blank(line: bytes) -> bool:
    return not line.strip(b" \t\r\n")


def _text(raw: bytes, name: str, line: int = 1, offset: int = 0) -> str:
    """`raw`, which begins at byte `offset` of the file and at `line`, as text."""
    if offset == 0:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{name}: the file is UTF-16, not UTF-8. Save it as UTF-8.")
        if raw.startswith(codecs.BOM_UTF8):
            raw, offset = raw[3:], 3
    at, text, fault = raw.find(b"\0"), "", "a NUL byte"
    if at < 0:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            at, fault = error.start, f"not UTF-8 (byte 0x{raw[error.start]:02x}: {error.reason})"
    line += raw.count(b"\n", 0, at)
    text = raw[raw.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "replace")
    fix = "Save the file as UTF-8." if "UTF-8" in fault else "The file is damaged or no text: write it again."
    raise UserError(f"{name}:{line}:{len(text) + 1}: {fault} at byte offset {offset + at}. {fix}")


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """(physical line from 1, text with its line end); blank lines too."""
    offset = 0
    with _readable(name), _bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            yield number, _text(raw, name, number, offset)
            offset += len(raw)


def _jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    for number, line in _lines(path, name):
        text = line.strip(" \t\r\n")
        if not text:
            continue
        try:
            data = parse(text)
        except JsonError as error:
            raise UserError(
                f"{name}:{number}:{error.column}: not usable JSON: {error.reason}. Write each row as one "
                f"whole JSON object on one line.{_document_hint(text)} The line begins: {beginning(text)}"
            ) from None
        if not isinstance(data, dict):
            raise UserError(
                f"{name}:{number}:1: the line is {_json_type(data)}, not an object. Write each row as "
                f'{{"column": value, ...}}.{_document_hint(text)} The line begins: {beginning(text)}'
            )
        yield Row(data, f"{name}:{number}")


def _document_hint(text: str) -> str:
    if text in ("[", "{", "[{") or text.startswith("["):
        return " (If the file is one JSON document over several lines, name it .json.)"
    return ""


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "an object")


def _json_rows(raw: bytes, name: str) -> list[Row] | None:
    """The rows of a JSON document; None when the bytes are JSON lines instead."""
    text = _text(raw, name)
    try:
        document = parse(text)
    except JsonError as error:
        if error.reason == "Extra data" and text.lstrip().startswith("{"):
            return None
        lines = text.split("\n")
        raise UserError(
            f"{name}:{error.line}:{error.column}: not usable JSON: {error.reason}. Write a list of objects, "
            f"or one object a line in a file named .jsonl. "
            f"The line begins: {beginning(lines[min(error.line, len(lines)) - 1])}"
        ) from None
    label, items = _list_of_rows(document, name)
    for index, item in enumerate(items):
        if not isinstance(item, dict):
            raise UserError(
                f"{name}[{index}]: the item{label} is {_json_type(item)}, not an object. Write each row as "
                f'{{"column": value, ...}}. The item begins: {beginning(item)}'
            )
    return [Row(item, f"{name}[{index}]") for index, item in enumerate(items)]


def _list_of_rows(document: Any, name: str) -> tuple[str, list[Any]]:
    if isinstance(document, list):
        return "", document
    if not isinstance(document, dict):
        raise UserError(
            f"{name}: the file holds {_json_type(document)}. Write a list of objects: [{{...}}, ...]."
        )
    if "messages" in document or "conversations" in document:
        return "", [document]  # one row, pretty-printed: its list is of messages
    lists = [key for key, value in document.items() if isinstance(value, list)]
    if len(lists) == 1:
        return f" of '{lists[0]}'", document[lists[0]]
    held = f"{len(lists)} lists ({', '.join(lists)})" if lists else "no list"
    raise UserError(
        f"{name}: the file is one object that holds {held}. Write the rows as a list of objects, "
        f'[{{...}}, ...], or as an object with one list, {{"data": [...]}}.'
    )


def _csv_rows(path: Path, name: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)  # the module's own 128 KiB is less than a long document
    tabs = ".tsv" in [suffix.lower() for suffix in path.suffixes[-2:]]
    reader = csv.reader(
        (line for _, line in _lines(path, name)), delimiter="\t" if tabs else ",", strict=True
    )
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{name}:{start}: not a valid record: {error}. Quote a field that holds separators, "
                f'quotes or line breaks, and double the quotes in it: "say ""hi""".'
            ) from None
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            _check_header(header, name, start, tabs)
        elif len(fields) != len(header):
            raise UserError(
                f"{name}:{start}: {len(fields)} fields where the header has {len(header)} "
                f"({', '.join(header)}). Quote a field that holds separators or line breaks. "
                f"The record begins: {beginning(fields)}"
            )
        else:
            yield Row(dict(zip(header, fields, strict=True)), f"{name}:{start}")


def _check_header(header: list[str], name: str, line: int, tabs: bool) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise UserError(
            f"{name}:{line}: the header names {', '.join(map(repr, twice))} twice. "
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
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{name}: not a readable Parquet file: {reason}. Write or download it again."
        ) from None


def _parquet_length(path: Path, name: str) -> int:
    with _parquet_file(path, name) as file:
        return file.metadata.num_rows


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    index = 0
    with _parquet_file(path, name) as file:
        for batch in file.iter_batches(batch_size=256):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}: a string in rows {index} to {index + len(batch) - 1} is not UTF-8 "
                    f"({error.reason}). Write the column as UTF-8 text."
                ) from None
            for data in rows:
                filled = {column: without_filled_nulls(value) for column, value in data.items()}
                yield Row(filled, f"{name}[{index}]")
                index += 1
