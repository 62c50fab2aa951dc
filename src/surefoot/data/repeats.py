"""How many of a data set's examples stood before: counted from eight bytes each, in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from typing import IO

import numpy as np

RUN = 1 << 19
"""Hashes sorted in memory at once (4 MiB); more go to a temporary file, in sorted runs."""
RANGES = 64
"""Parts of the hashes' range that the runs are merged by: RUN hashes fill memory only from 32 runs on."""


class Repeats:
    """Counts contents that were added before.

    Two different contents have the same hash with a probability of n² / 2^65 (one in a million for 5 M examples);
    the count is for people, nothing is dropped by it.
    """

    def __init__(self) -> None:
        self._recent = np.empty(RUN, np.uint64)
        self._filled = 0
        self._runs = 0
        self._file: IO[bytes] | None = None

    def add(self, content: bytes) -> None:
        """Take one content into account."""
        if self._filled == RUN:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            self._file.write(np.sort(self._recent).tobytes())
            self._filled, self._runs = 0, self._runs + 1
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self._recent[self._filled] = int.from_bytes(digest, "little")
        self._filled += 1

    def count(self) -> int:
        """How many contents so far stood before."""
        runs = [np.sort(self._recent[: self._filled])]
        if self._file is not None:
            self._file.flush()
            kept = np.memmap(self._file, np.uint64, "r", shape=(self._runs, RUN))
            runs += list(kept)
        if len(runs) == 1:
            return _repeated(runs[0])
        edges = np.arange(1, RANGES, dtype=np.uint64) * np.uint64(2**64 // RANGES)
        cuts = [[0, *np.searchsorted(run, edges).tolist(), len(run)] for run in runs]
        return sum(
            _repeated(
                np.sort(
                    np.concatenate([run[cut[i] : cut[i + 1]] for run, cut in zip(runs, cuts, strict=True)])
                )
            )
            for i in range(RANGES)
        )


def _repeated(sorted_hashes: np.ndarray) -> int:
    return int(np.count_nonzero(sorted_hashes[1:] == sorted_hashes[:-1]))
