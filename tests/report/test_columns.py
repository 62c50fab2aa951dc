"""Long columns made short: against slow plain ways to say the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.report.columns import STEP_COLUMNS, Columns, curve, elapsed, kept, means

VALUES = st.lists(
    st.one_of(
        st.floats(-1e6, 1e6),
        st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0, 5e-324]),
    ),
    max_size=200,
)
BUCKETS = st.integers(1, 8)


def stretches(count: int, buckets: int) -> list[range]:
    """Equal ones, as many as asked for at most, the last with what is left."""
    size = math.ceil(count / buckets)
    return [range(start, min(start + size, count)) for start in range(0, count, size)] if count else []


def wanted(values: Sequence[float], buckets: int) -> set[int]:
    """Of each stretch the first least, the first greatest, the first that is not finite; and the ends."""
    if len(values) <= 2 * buckets:
        return set(range(len(values)))
    found = {0, len(values) - 1}
    for stretch in stretches(len(values), buckets):
        finite = [i for i in stretch if math.isfinite(values[i])]
        if finite:
            found |= {min(finite, key=lambda i: (values[i], i)), min(finite, key=lambda i: (-values[i], i))}
        found |= set([i for i in stretch if not math.isfinite(values[i])][:1])
    return found


@settings(max_examples=300, deadline=None)
@given(VALUES, BUCKETS)
def test_the_extremes_of_every_stretch_are_kept(values: list[float], buckets: int) -> None:
    found = kept(np.array(values), buckets).tolist()
    assert found == sorted(set(found))
    assert set(found) == wanted(values, buckets)
    assert len(found) <= 3 * buckets + 2


@pytest.mark.parametrize("at", [0, 1, 39, 500, 960, 998, 999, 1000, 1001])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e9, -1e9])
def test_one_odd_value_is_always_seen(at: int, value: float) -> None:
    values = np.ones(1002)
    values[at] = value
    assert at in kept(values, 20)


def test_a_column_of_nothing_and_of_one_value() -> None:
    for values in ([], [1.0], [math.nan], [math.nan] * 99, [2.0] * 99):
        found = kept(np.array(values), 4)
        assert set(found.tolist()) == wanted(values, 4)
        assert {0, len(values) - 1} <= set(found.tolist()) or not values


@settings(max_examples=100, deadline=None)
@given(VALUES, BUCKETS)
def test_a_curve_is_those_points(values: list[float], buckets: int) -> None:
    x = np.array([3.0 * i + 1 for i in range(len(values))])
    found = curve(x, np.array(values), buckets)
    chosen = kept(np.array(values), buckets)
    assert found["x"] == [3.0 * i + 1 for i in chosen.tolist()]
    np.testing.assert_array_equal(found["y"], [values[i] for i in chosen.tolist()])


@settings(max_examples=300, deadline=None)
@given(VALUES, BUCKETS)
def test_means_are_of_what_is_finite_in_each_stretch(values: list[float], buckets: int) -> None:
    x = np.array([float(i * i) for i in range(len(values))])
    found = means(x, np.array(values), buckets)
    rows = []
    for stretch in stretches(len(values), 2 * buckets):
        finite = [values[i] for i in stretch if math.isfinite(values[i])]
        if finite:
            place = math.fsum(x[i] for i in stretch) / len(stretch)
            rows.append((place, math.fsum(finite) / len(finite), len(finite)))
    assert found["n"] == [n for _, _, n in rows]
    assert sum(found["n"]) == sum(map(math.isfinite, values))
    assert found["x"] == pytest.approx([place for place, _, _ in rows], rel=1e-12)
    assert found["y"] == pytest.approx([mean for _, mean, _ in rows], rel=1e-9, abs=1e-8)
    assert len(found["x"]) <= 2 * buckets


# Time --------------------------------------------------------------------------------------------------------


def run_of(times: Sequence[float]) -> Columns:
    columns = Columns()
    for step, time in enumerate(times, 1):
        assert columns.append({"step": step, "time": time})
    return columns


def plainly(times: Sequence[float], resumed: Sequence[int]) -> list[float]:
    """A gap counts if the clock went on and the run did not stand still; else the usual gap does."""
    gaps = [(step, b - a) for step, (a, b) in enumerate(pairwise(times), 1)]

    def counts(step: int, gap: float) -> bool:
        return math.isfinite(gap) and gap >= 0 and step not in resumed

    fine = sorted(gap for step, gap in gaps if counts(step, gap))
    middle = len(fine) // 2
    usual = 0.0 if not fine else fine[middle] if len(fine) % 2 else (fine[middle - 1] + fine[middle]) / 2
    found = [usual] if times else []
    for step, gap in gaps:
        found.append(found[-1] + (gap if counts(step, gap) else usual))
    return found


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1e6), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=40),
    st.lists(st.integers(-1, 45), max_size=5),
)
def test_elapsed_never_goes_back(times: list[float], resumed: list[int]) -> None:
    found = elapsed(run_of(times), resumed).tolist()
    assert found == pytest.approx(plainly(times, resumed), rel=1e-12, abs=1e-6)
    assert found == sorted(found) and all(map(math.isfinite, found))


def test_a_night_between_two_parts_is_no_time_of_the_run() -> None:
    times = [0.0, 1.0, 2.0, 3.0, 50_003.0, 50_004.0, 50_005.0]
    assert elapsed(run_of(times), [4]).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert elapsed(run_of(times))[-1] == 50_006.0
    assert elapsed(run_of([])).tolist() == [] and elapsed(run_of([9.0])).tolist() == [0.0]


# The table ---------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([1.5, None, "x", math.nan, 3, True])), max_size=60)
)
def test_rows_whose_step_rises_are_taken(rows: list[tuple[int, Any]]) -> None:
    columns, expected = Columns(("step", "loss")), []
    for step, loss in rows:
        rises = not expected or step > expected[-1][0]
        assert columns.append({"step": step, "loss": loss}) is rises
        if rises:
            expected.append((step, loss))
    numbers = [loss if isinstance(loss, float) or loss == 3 else math.nan for _, loss in expected]
    assert columns["step"].tolist() == [step for step, _ in expected]
    np.testing.assert_array_equal(columns["loss"], numbers)
    known = any(loss in (1.5, 3) or isinstance(loss, float) for _, loss in expected)
    assert columns.known == ({"step"} if expected else set()) | ({"loss"} if known else set())


def test_a_long_table_grows_and_gives_parts_of_itself() -> None:
    columns = Columns()
    for step in range(2_000):
        columns.append({"step": step, "loss": -float(step)})
    assert columns["loss"].tolist() == [-float(step) for step in range(2_000)]
    assert columns.nbytes >= 2_000 * len(STEP_COLUMNS) * 8
    for first, last in ((0, 2_000), (500, 700), (7, 7), (9, 3), (1_990, 2_000)):
        part = columns.rows(first, last)
        assert part["loss"].tolist() == columns["loss"][first:last].tolist()
        assert (part.count, part.known) == (max(0, last - first), columns.known)
