"""Examples on disk: written as they come, in bounded memory; read through a memory map.

A set of examples is four flat files, little-endian:

    tokens    int32: prompt and completion of each example, one after the other
    examples  EXAMPLE: one record an example
    rows      ROW: one record a row that has examples
    places    UTF-8: `where` of each of these rows, one after the other

Where a file cannot be written (the disk is full), what there is goes on in memory.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import BinaryIO, TypeVar, overload
from weakref import WeakValueDictionary

import numpy as np

from surefoot.data.rows import Example

TOKEN = np.dtype("<i4")
EXAMPLE = np.dtype([("end", "<i8"), ("prompt", "<i4"), ("row", "<i8"), ("weight", "<f8")])
"""Where its tokens end, how many are prompt, its row's index in `rows`, its weight."""
ROW = np.dtype([("row", "<i8"), ("end", "<i8"), ("place", "<i8")])
"""The row's number in the source, where its examples end, where its place ends."""
FILES = ("tokens", "examples", "rows", "places")
BUFFERED = 1 << 16
"""Tokens that wait to be written; what an example takes as a Python object counts as OVERHEAD more."""
OVERHEAD = 32

RELEASED = 256
"""Examples read between two times that the mapped pages are given back."""

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are made when asked for; a slice is a list."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"{index} is not among {self._length}")
        return self._make(index % self._length)

    def __iter__(self) -> Iterator[T]:
        return map(self._make, range(self._length))


@dataclass(frozen=True, eq=False)
class Stored:
    """A finished set of examples, mapped. An example that somebody holds is the same object when asked again."""

    tokens: np.ndarray
    """int32 [T]"""
    _examples: np.ndarray
    _rows: np.ndarray
    _places: np.ndarray
    _maps: tuple[mmap.mmap, ...] = field(repr=False)
    _held: WeakValueDictionary[int, Example] = field(default_factory=WeakValueDictionary, repr=False)
    _read: Iterator[int] = field(default_factory=lambda: count(1), repr=False)
    known_digest: str | None = None
    """What `digest` returns, where that is known."""

    @property
    def examples(self) -> Lazy[Example]:
        return Lazy(len(self._examples), self._example)

    @property
    def rows(self) -> Lazy[tuple[Example, ...]]:
        """The examples of each row that has any."""
        return Lazy(len(self._rows), self._row)

    def digest(self) -> str:
        """sha256 of what is learned, in its order: tokens, borders, weights, row numbers. Not of a file's name."""
        if self.known_digest is not None:
            return self.known_digest
        digest = hashlib.sha256()
        for start in range(0, len(self.tokens), 1 << 22):
            digest.update(self.tokens[start : start + (1 << 22)].data)
            self._release()
        digest.update(self._examples.view(np.uint8).data)
        for part in ("row", "end"):
            digest.update(np.ascontiguousarray(self._rows[part]).data)
        self._release()
        return digest.hexdigest()

    @property
    def lengths(self) -> np.ndarray:
        """int32 [examples]: tokens of each, prompt and completion."""
        lengths = np.empty(len(self._examples), np.int32)
        for start in range(0, len(lengths), BUFFERED):
            ends = self._examples["end"][max(0, start - 1) : start + BUFFERED]
            lengths[start : start + BUFFERED] = np.diff(ends, prepend=ends[:0] if start else 0)
            self._release()
        return lengths

    def _example(self, index: int) -> Example:
        if (held := self._held.get(index)) is not None:
            return held
        end, prompt, at, weight = self._examples[index].item()
        start = self._examples[index - 1].item()[0] if index else 0
        row, _, place = self._rows[at].item()
        before = self._rows[at - 1].item()[2] if at else 0
        ids = self.tokens[start:end]
        where = self._places[before:place].tobytes().decode()
        if next(self._read) % RELEASED == 0:
            self._release()
        example = self._held[index] = Example(ids[:prompt], ids[prompt:], row, where, weight)
        return example

    def _release(self) -> None:
        """Give mapped pages back, which come again when they are touched: else an epoch would leave the whole
        set counted as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)

    def _row(self, index: int) -> tuple[Example, ...]:
        first = self._rows[index - 1].item()[1] if index else 0
        return tuple(map(self._example, range(first, self._rows[index].item()[1])))


def open_stored(folder: Path) -> Stored:
    """Map a finished set. Raises OSError or ValueError when it is not whole."""
    buffers = []
    for name in FILES:
        with (folder / name).open("rb") as file:
            buffers.append(_mapped(file))
    return _stored(buffers)


class Writer:
    """Takes examples one by one, those of a row one after the other."""

    def __init__(self, folder: Path | None) -> None:
        """`folder` must exist and be empty; None keeps everything in memory. Raises OSError."""
        self.fault: OSError | None = None
        """Why the files could not be written, once they could not."""
        self._columns = [_Column(folder / name if folder else None) for name in FILES]
        self._tokens: list[np.ndarray] = []
        self._examples: list[tuple[int, int, int, float]] = []
        self._rows: list[tuple[int, int, int]] = []
        self._places: list[bytes] = []
        self._end = self._row_count = self._example_count = self._place_end = self._waiting = 0
        self._last: tuple[int, str] | None = None

    def __len__(self) -> int:
        """Examples so far."""
        return self._example_count

    def add(self, example: Example) -> None:
        """Append an example; what was added before may be on its way to the disk."""
        if self._last is None or self._last[0] != example.row:
            if self._waiting >= BUFFERED:
                self._flush()
            self._last = example.row, example.where
            place = example.where.encode("utf-8", "replace")
            self._places.append(place)
            self._place_end += len(place)
            self._rows.append((example.row, self._example_count, self._place_end))
            self._row_count += 1
        assert self._last[1] == example.where, "a row has one place"
        self._tokens += [example.prompt_ids, example.completion_ids]
        self._end += example.tokens
        self._waiting += example.tokens + OVERHEAD
        self._examples.append((self._end, len(example.prompt_ids), self._row_count - 1, example.weight))
        self._example_count += 1
        self._rows[-1] = (example.row, self._example_count, self._place_end)

    def finish(self, *, sync: bool) -> Stored:
        """The set, mapped; `sync`: it is on the disk, whatever happens to the machine."""
        self._flush()
        try:
            return _stored([column.finished(sync=sync and self.fault is None) for column in self._columns])
        except OSError as error:  # what a disk refuses late
            self._to_memory(error)
            return _stored([column.finished(sync=False) for column in self._columns])

    def close(self) -> None:
        """Close the files; what is mapped stays mapped."""
        for column in self._columns:
            column.close()

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: column.size for name, column in zip(FILES, self._columns, strict=True)}

    def _flush(self) -> None:
        tokens = np.concatenate(self._tokens).astype(TOKEN, copy=False) if self._tokens else np.empty(0)
        examples, rows = np.array(self._examples, EXAMPLE), np.array(self._rows, ROW)
        parts = (tokens.tobytes(), examples.tobytes(), rows.tobytes(), b"".join(self._places))
        for part, column in zip(parts, self._columns, strict=True):
            try:
                column.write(part)
            except OSError as error:
                self._to_memory(error)
                column.write(part)
        for waiting in (self._tokens, self._examples, self._rows, self._places):
            waiting.clear()
        self._waiting = 0

    def _to_memory(self, error: OSError) -> None:
        self.fault = self.fault or error
        for column in self._columns:
            column.to_memory()


class _Column:
    """Bytes appended to a file, or in memory."""

    def __init__(self, path: Path | None) -> None:
        self.size = 0
        self._memory = bytearray()
        self._file: BinaryIO | None = path.open("x+b", buffering=0) if path else None  # type: ignore[assignment]

    def write(self, part: bytes) -> None:
        """All of `part`, or OSError and none of it."""
        if self._file is None:
            self._memory += part
        else:
            rest = memoryview(part)
            while rest:
                rest = rest[self._file.write(rest) :]
        self.size += len(part)

    def to_memory(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            while len(self._memory) < self.size:
                self._memory += self._file.read(min(1 << 24, self.size - len(self._memory)))
            with suppress(OSError):
                self._file.truncate(0)  # the disk is full, perhaps of this
            self.close()

    def finished(self, *, sync: bool) -> mmap.mmap | bytearray:
        if self._file is None:
            return self._memory
        if sync:
            os.fsync(self._file.fileno())
        return _mapped(self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _mapped(file: BinaryIO) -> mmap.mmap | bytearray:
    if os.fstat(file.fileno()).st_size == 0:
        return bytearray()  # an empty file cannot be mapped
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _stored(buffers: Sequence[mmap.mmap | bytearray]) -> Stored:
    raw = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
    for array in raw:
        array.flags.writeable = False
    tokens, examples, rows = (one.view(kind) for one, kind in zip(raw, (TOKEN, EXAMPLE, ROW), strict=False))
    ends = (examples[-1]["end"], rows[-1]["end"], rows[-1]["place"]) if len(rows) and len(examples) else 0
    if ends != (len(tokens), len(examples), len(raw[3])):
        raise ValueError("the files of examples do not belong together")
    maps = tuple(buffer for buffer in buffers if isinstance(buffer, mmap.mmap))
    return Stored(tokens, examples, rows, raw[3], maps)
