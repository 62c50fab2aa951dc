"""The header of a GGUF file, walked before the model library reads it.

Every length in it is checked against the file before anything is made that long, and every tensor lies in the file:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast

from surefoot.errors import UserError
from surefoot.regular import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by its type's number."""
STRING, ARRAY = 8, 9
MOST_ENTRIES = 5_000_000
"""Texts in all arrays: vocabularies have 300,000, and two merges for each."""
MOST_TENSORS = 100_000
MOST_KEYS = 10_000
LONGEST_NAME = 1 << 16
MOST_DIMENSIONS = 8
LEAST_KEY, LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
"""Bytes that an entry takes at least."""


def check_gguf(path: Path) -> int:
    """The file can be given to the model library. Returns how many numbers its tensors hold; raises UserError."""
    try:
        with open_regular(path) as file:
            return _Walk(path, cast(BinaryIO, file)).elements()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def alone(path: Path) -> Iterator[Path]:
    """The file in a folder of its own: the model library would read what lies beside it too."""
    with TemporaryDirectory() as folder:
        link = Path(folder) / path.name
        link.symlink_to(path.resolve())
        yield link


class _Walk:
    """One pass over the header."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size
        self._at = 0
        self._entries = 0
        self._alignment = 32

    def elements(self) -> int:
        magic = self._file.read(4)
        self._at = 4
        if magic != MAGIC:
            raise self._wrong(f"it begins with {magic!r}, not {MAGIC!r}, so it is no GGUF file")
        version, tensors, keys = self._unpack("<IQQ")
        if version not in VERSIONS:
            raise self._wrong(f"its version is {version}; {VERSIONS[0]} and {VERSIONS[1]} can be read")
        self._fits(keys, LEAST_KEY, MOST_KEYS, "entries")
        for _ in range(keys):
            key = self._text(LONGEST_NAME)
            (kind,) = self._unpack("<I")
            if key == b"general.alignment" and kind == 4:
                (self._alignment,) = self._unpack("<I")
                if not 0 < self._alignment <= 1 << 20 or self._alignment & (self._alignment - 1):
                    raise self._wrong(
                        f"its alignment is {self._alignment:,}, not a power of two up to 1,048,576"
                    )
            else:
                self._value(kind, deep=False)
        self._fits(tensors, LEAST_TENSOR, MOST_TENSORS, "tensors")
        found = [self._tensor() for _ in range(tensors)]
        start = -(-self._at // self._alignment) * self._alignment
        for name, offset, length, _ in found:
            if start + offset + length > self._size:
                raise self._wrong(
                    f"it is cut off: {_shown(name)} ends at byte {start + offset + length:,} of {self._size:,}. "
                    "Download it again"
                )
        return sum(count for *_, count in found)

    def _value(self, kind: int, *, deep: bool) -> None:
        if kind in SCALARS:
            self._skip(SCALARS[kind])
        elif kind == STRING:
            self._text(None)
        elif kind == ARRAY and not deep:
            inner, count = self._unpack("<IQ")
            if inner in SCALARS:
                self._fits(count, SCALARS[inner], None, "values of a list")
                self._skip(count * SCALARS[inner])
                return
            self._entries += count
            self._fits(count, 8, None, "texts of a list")
            self._fits(self._entries, 0, MOST_ENTRIES, "texts of its lists")
            for _ in range(count):
                self._value(inner, deep=True)
        else:
            raise self._wrong(f"at byte {self._at:,} is a value of the unknown kind {kind}")

    def _tensor(self) -> tuple[bytes, int, int, int]:
        """(name, where its data begins, how many bytes it has, how many numbers that is)."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._text(LONGEST_NAME)
        (dimensions,) = self._unpack("<I")
        self._fits(dimensions, 8, MOST_DIMENSIONS, f"dimensions of {_shown(name)}")
        shape = self._unpack(f"<{dimensions}Q")
        kind, offset = self._unpack("<IQ")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self._wrong(f"{_shown(name)} is of the unknown kind {kind}") from None
        count = math.prod(shape)
        return name, offset, -(-count // block) * size, count

    def _text(self, most: int | None) -> bytes:
        (length,) = self._unpack("<Q")
        self._fits(length, 1, most, "bytes of a text")
        if most is None:
            self._skip(length)
            return b""
        self._at += length
        return self._file.read(length)

    def _fits(self, count: int, each: int, most: int | None, what: str) -> None:
        """Raises UserError when so many things of so many bytes each cannot be in what is left of the file."""
        if most is not None and count > most:
            raise self._wrong(f"at byte {self._at:,} it has {count:,} {what}, more than any model's {most:,}")
        if count * each > self._size - self._at:
            raise self._wrong(
                f"at byte {self._at:,} it has {count:,} {what}, and only {self._size - self._at:,} bytes follow"
            )

    def _unpack(self, form: str) -> tuple[int, ...]:
        length = struct.calcsize(form)
        self._fits(length, 1, None, "bytes of a number")
        self._at += length
        return struct.unpack(form, self._file.read(length))

    def _skip(self, length: int) -> None:
        self._fits(length, 1, None, "bytes of a value")
        self._at += length
        self._file.seek(self._at)

    def _wrong(self, said: str) -> UserError:
        return UserError(f"{self._path}: this GGUF file cannot be read: {said}")


def _shown(name: bytes) -> str:
    return repr(name[:80].decode("utf-8", "replace"))
