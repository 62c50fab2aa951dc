"""Bytes of a file → lines of text, with memory bounded whatever the file holds.

1. Only an ordinary file is opened: a pipe is not waited for. `.gz` is unpacked as it is read.
2. A line beyond LONGEST_ROW is stepped over, never held.
3. Bytes become text line by line, so that a fault is named by line, column and byte offset.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from surefoot.errors import UserError
from surefoot.regular import open_regular

LONGEST_ROW = 64 << 20
"""Most bytes of one row's text."""
CHUNK_BYTES = 1 << 20
SHOWN_BYTES = 1_000
"""Of a line that is too long, what is kept to show its beginning."""


Line: TypeAlias = tuple[int, int, bytes, int]
"""A physical line: its number from 1; how many bytes of the (uncompressed) file stand before it; its bytes with the
line end, but only the beginning of a line longer than LONGEST_ROW; how many bytes it has."""


class NotTextError(ValueError):
    """Bytes that are no text: `fault` and its `fix`, found `at` a byte of them; `kind` in a few words."""

    def __init__(self, at: int, kind: str, fault: str, fix: str) -> None:
        super().__init__(fault)
        self.at = at
        self.kind = kind
        self.fault = fault
        self.fix = fix


@contextmanager
def opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The uncompressed bytes. Raises UserError, also while they are read."""
    try:
        with open_regular(path) as file:
            if path.suffix.lower() != ".gz":
                yield file
            else:
                with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
                    # expensive: a line straight from GzipFile goes through Python code
                    yield io.BufferedReader(cast(Any, unpacked), CHUNK_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{name}: not a whole gzip file ({error}). Compress it again, or give it uncompressed."
        ) from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}.") from None


def lines(stream: IO[bytes]) -> Iterator[Line]:
    """All lines of `stream`, blank ones too, the first without its byte order mark."""
    number = offset = 0
    while raw := stream.readline(LONGEST_ROW + 1):
        number += 1
        length = len(raw)
        if length > LONGEST_ROW:
            more, raw = raw, raw[:SHOWN_BYTES]
            while not more.endswith(b"\n") and (more := stream.readline(CHUNK_BYTES)):
                length += len(more)
        if number == 1 and raw.startswith(codecs.BOM_UTF8):
            mark = len(codecs.BOM_UTF8)
            yield number, mark, raw[mark:], length - mark
        else:
            yield number, offset, raw, length
        offset += length


def count_rows(stream: IO[bytes], taken: Callable[[bytes], object]) -> int:
    """How many lines of `stream` are not blank, or too long; `taken` sees every byte."""
    found = length = 0
    filled, first = False, True
    while raw := stream.readline(CHUNK_BYTES):
        taken(raw)
        length += len(raw)
        filled = filled or not is_blank(raw.removeprefix(codecs.BOM_UTF8) if first else raw)
        first = False
        if raw.endswith(b"\n"):
            found += filled or length > LONGEST_ROW
            length, filled = 0, False
    return found + (filled or length > LONGEST_ROW)


def is_blank(raw: bytes) -> bool:
    """Whether there is nothing that JSON would read."""
    return not raw or (raw.isspace() and not raw.strip(b" \t\r\n"))


def as_text(raw: bytes) -> str:
    """`raw` as text. Raises NotTextError for a NUL byte and for what is not UTF-8."""
    if b"\0" in raw:
        fix = "The file is damaged or no text: write it again."
        raise NotTextError(raw.index(b"\0"), "NUL byte", "a NUL byte", fix)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        fault = f"not UTF-8 (byte 0x{raw[at]:02x}: {error.reason})"
        raise NotTextError(at, "not UTF-8", fault, "Save the file as UTF-8.") from None


def column(raw: bytes, at: int) -> int:
    """The column, from 1 and in characters, of byte `at` in its line."""
    return len(raw[raw.rfind(b"\n", 0, at) + 1 : at].decode("utf-8", "replace")) + 1
