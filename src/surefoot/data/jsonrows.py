"""Rows of JSONL, and of one JSON document."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from surefoot.data.badrows import RowError
from surefoot.data.lines import (
    CHUNK_BYTES,
    LONGEST_ROW,
    NotTextError,
    as_text,
    column,
    is_blank,
    lines,
    opened,
)
from surefoot.data.rows import Row
from surefoot.data.strictjson import JsonError, beginning, parse
from surefoot.errors import UserError

LARGEST_DOCUMENT = 2 * 10**9
"""Most bytes of a JSON document, which is held in memory whole."""


def jsonl_rows(path: Path, name: str) -> Iterator[Row | RowError]:
    """A row for each line that is not blank, read as it is asked for."""
    with opened(path, name) as stream:
        for number, offset, raw, length in lines(stream):
            if length > LONGEST_ROW:
                yield _too_long(raw, length, f"{name}:{number}")
            elif not is_blank(raw):
                yield _row(raw, offset, f"{name}:{number}")


def _too_long(raw: bytes, length: int, where: str) -> RowError:
    return RowError(
        where,
        "row too long",
        f"{where}: the line has {length:,} bytes, more than the {LONGEST_ROW:,} that a row may have. "
        f"Split the row, or take it out. The line begins: {_beginning(raw)}",
    )


def _row(raw: bytes, offset: int, where: str) -> Row | RowError:
    try:
        text = as_text(raw).rstrip(" \t\r\n")
    except NotTextError as error:
        return RowError(
            where,
            error.kind,
            f"{where}:{column(raw, error.at)}: {error.fault} at byte offset {offset + error.at}. "
            f"{error.fix} The line begins: {_beginning(raw)}",
        )
    try:
        data = parse(text)
    except JsonError as error:
        return RowError(
            where,
            error.kind,
            f"{where}:{error.column}: not usable JSON: {error.reason}{_offset(error, text, offset)}. Write "
            f"each row as one whole JSON object on one line.{_document_hint(text)} "
            f"The line begins: {_beginning(raw)}",
        )
    if isinstance(data, dict):
        return Row(data, where)
    return RowError(
        where,
        "not an object",
        f"{where}:1: the line is {_json_type(data)}, not an object. Write each row as "
        f'{{"column": value, ...}}.{_document_hint(text)} The line begins: {_beginning(raw)}',
    )


def _offset(error: JsonError, text: str, before: int) -> str:
    """Where in the file a lone surrogate stands, as half a sentence; "" for another fault."""
    if error.surrogate_at is None:
        return ""
    return f", at byte offset {before + len(text[: error.surrogate_at].encode())}"


def _beginning(raw: bytes) -> str:
    return beginning(raw[:1000].decode("utf-8", "replace").strip(" \t\r\n"))


def _document_hint(text: str) -> str:
    text = text.strip(" \t\r\n")
    if text in ("[", "{", "[{") or text.startswith("["):
        return " (If the file is one JSON document over several lines, name it .json.)"
    return ""


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "an object")


def document(path: Path, name: str) -> bytes:
    """The bytes of a JSON document. Raises UserError for one that is too large to be held."""
    with opened(path, name) as stream:
        parts = list(_bounded(stream, path, name))
    return b"".join(parts)


def _bounded(stream: IO[bytes], path: Path, name: str) -> Iterator[bytes]:
    size = 0 if path.suffix.lower() == ".gz" else os.fstat(stream.fileno()).st_size
    taken = 0
    while max(size, taken) <= LARGEST_DOCUMENT and (chunk := stream.read(CHUNK_BYTES)):
        taken += len(chunk)
        yield chunk
    if max(size, taken) > LARGEST_DOCUMENT:
        raise UserError(
            f"{name}: a JSON document of more than {LARGEST_DOCUMENT:,} bytes, which would be held in memory "
            f"whole. Write one object a line in a file named .jsonl, which is read line by line."
        )


def document_rows(raw: bytes, name: str) -> list[Row | RowError] | None:
    """The rows of a JSON document; None when the bytes are JSON lines instead."""
    mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    raw = raw[mark:]
    try:
        text = as_text(raw)
    except NotTextError as error:
        line = raw.count(b"\n", 0, error.at) + 1
        raise UserError(
            f"{name}:{line}:{column(raw, error.at)}: {error.fault} at byte offset {mark + error.at}. {error.fix}"
        ) from None
    try:
        found = parse(text)
    except JsonError as error:
        if error.reason == "Extra data" and text.lstrip().startswith("{"):
            return None
        split = text.split("\n")
        raise UserError(
            f"{name}:{error.line}:{error.column}: not usable JSON: {error.reason}{_offset(error, text, mark)}. "
            f"Write a list of objects, or one object a line in a file named .jsonl. "
            f"The line begins: {beginning(split[min(error.line, len(split)) - 1])}"
        ) from None
    label, items = _list_of_rows(found, name)
    return [_item(item, f"{name}[{index}]", label) for index, item in enumerate(items)]


def _item(item: Any, where: str, label: str) -> Row | RowError:
    if isinstance(item, dict):
        return Row(item, where)
    return RowError(
        where,
        "not an object",
        f"{where}: the item{label} is {_json_type(item)}, not an object. Write each row as "
        f'{{"column": value, ...}}. The item begins: {beginning(item)}',
    )


def _list_of_rows(found: Any, name: str) -> tuple[str, list[Any]]:
    if isinstance(found, list):
        return "", found
    if not isinstance(found, dict):
        raise UserError(
            f"{name}: the file holds {_json_type(found)}. Write a list of objects: [{{...}}, ...]."
        )
    if "messages" in found or "conversations" in found:
        return "", [found]  # one row, pretty-printed: its list is of messages
    lists = [key for key, value in found.items() if isinstance(value, list)]
    if len(lists) == 1:
        return f" of '{lists[0]}'", found[lists[0]]
    held = f"{len(lists)} lists ({beginning(', '.join(lists))})" if lists else "no list"
    raise UserError(
        f"{name}: the file is one object that holds {held}. Write the rows as a list of objects, "
        f'[{{...}}, ...], or as an object with one list, {{"data": [...]}}.'
    )
