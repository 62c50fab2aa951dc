"""The steps of a run as columns of numbers, and what of a long column is worth drawing.

A figure of a thousand pixels shows a hundred thousand steps by the least and the greatest of each stretch: every
spike is there, and what it takes to draw does not grow with the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.report.records import number

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]

STEP_COLUMNS = (
    "step",
    "time",
    "epoch",
    "loss",
    "learning_rate",
    "grad_norm",
    "clip_factor",
    "token_accuracy",
    "entropy",
    "supervised",
    "num_tokens",
    "step_seconds",
    "tokens_per_second",
    "memory_bytes",
    "mfu",
)


class Columns:
    """A table of numbers that grows by rows; the first column only ever rises."""

    def __init__(self, names: Sequence[str] = STEP_COLUMNS) -> None:
        self.names = tuple(names)
        self.count = 0
        self.known: set[str] = set()
        """Columns in which there ever was a number."""
        self._table: Numbers = np.empty((256, len(self.names)))

    def append(self, record: Mapping[str, Any]) -> bool:
        """Add a row; what is no number there becomes NaN. False, and nothing added, if the first column does not
        rise."""
        row = [number(record.get(name)) for name in self.names]
        first = row[0]
        if first is None or (self.count and not first > self._table[self.count - 1, 0]):
            return False
        if self.count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[self.count] = [math.nan if value is None else value for value in row]
        if len(self.known) < len(self.names):
            self.known |= {name for name, value in zip(self.names, row, strict=True) if value is not None}
        self.count += 1
        return True

    def __getitem__(self, name: str) -> Numbers:
        """One column, [rows]; not a copy."""
        return self._table[: self.count, self.names.index(name)]

    def rows(self, first: int, last: int) -> Columns:
        """The rows from `first` to before `last`; they share memory with these."""
        part = Columns(self.names)
        part._table, part.count, part.known = self._table[first:last], max(0, last - first), self.known
        return part

    @property
    def nbytes(self) -> int:
        """Memory that the table takes."""
        return self._table.nbytes


def kept(values: Numbers, buckets: int) -> Indices:
    """Which of a long column to draw, in order: the least and the greatest of each of so many stretches, the first
    value of each that is not finite, and the column's two ends. All of a column that is no longer than that."""
    count = len(values)
    if count <= 2 * buckets:
        return np.arange(count)
    size = -(-count // buckets)
    starts = np.arange(0, count, size)
    finite = np.isfinite(values)

    def stretches(column: NDArray[Any], fill: float) -> NDArray[Any]:
        return np.pad(column, (0, -count % size), constant_values=fill).reshape(-1, size)

    low = starts + stretches(np.where(finite, values, np.inf), np.inf).argmin(1)
    high = starts + stretches(np.where(finite, values, -np.inf), -np.inf).argmax(1)
    odd = starts + stretches(~finite, False).argmax(1)
    return np.unique(np.concatenate([low, high, odd[~finite[odd]], [0, count - 1]]))


def curve(x: Numbers, values: Numbers, buckets: int) -> dict[str, list[float]]:
    """A column to draw over another: {x, y}, at most about 3 × `buckets` points."""
    chosen = kept(values, buckets)
    return {"x": x[chosen].tolist(), "y": values[chosen].tolist()}


@np.errstate(over="ignore", invalid="ignore")
def means(x: Numbers, values: Numbers, buckets: int) -> dict[str, list[float]]:
    """The same column for smoothing: mean of the finite values of each stretch, how many they are, and where:
    {x, y, n}."""
    count = len(values)
    size = max(1, -(-count // (2 * buckets)))
    starts = np.arange(0, count, size)
    if not count:
        return {"x": [], "y": [], "n": []}
    finite = np.isfinite(values)
    many = np.add.reduceat(finite.astype(np.float64), starts)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts)
    place = np.add.reduceat(x, starts) / np.diff(np.append(starts, count))
    fine = many > 0
    return {
        "x": place[fine].tolist(),
        "y": (total[fine] / many[fine]).tolist(),
        "n": many[fine].astype(int).tolist(),
    }


@np.errstate(over="ignore", invalid="ignore")
def elapsed(columns: Columns, resumed: Sequence[int] = ()) -> Numbers:
    """Seconds of the run at each of its steps, [steps]: by the clock, never backwards, without the time it stood
    still before it went on after one of the steps `resumed`."""
    between = np.diff(columns["time"])
    stood = np.isin(columns["step"][:-1], np.asarray(resumed, np.float64))
    fine = np.isfinite(between) & (between >= 0) & ~stood
    usual = float(np.median(between[fine])) if fine.any() else 0.0
    return np.cumsum(np.concatenate([np.full(min(1, columns.count), usual), np.where(fine, between, usual)]))
