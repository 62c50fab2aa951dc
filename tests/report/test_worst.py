"""The worst rows, against a plain recount of every visit."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.report.worst import RowCost, WorstRows, worst_rows

Step = list[tuple[str, float, int]]


def events(steps: list[Step]) -> list[dict[str, Any]]:
    """As a run writes them, with other records in between."""
    found: list[dict[str, Any]] = [{"type": "start", "step": 0}]
    for number, examples in enumerate(steps, 1):
        found.append({"type": "step", "step": number, "examples": [list(one) for one in examples]})
        found.append({"type": "watch", "step": number, "p": {}})
    return found


def recount(steps: list[Step], limit: int) -> tuple[list[str], list[str], list[str], dict[str, list[float]]]:
    """Names of the rows that cost most, rose and were never learned; each row's losses by visit."""
    losses, cost = defaultdict(list), defaultdict(float)
    for examples in steps:
        for where in dict.fromkeys(where for where, _, _ in examples):
            mine = [one for one in examples if one[0] == where]
            tokens = sum(one[2] for one in mine)
            if tokens:
                losses[where].append(sum(one[1] for one in mine) / tokens)
                cost[where] += sum(one[1] for one in mine)
    firsts = sorted(found[0] for found in losses.values())
    middle = len(firsts) // 2
    high = math.inf
    if firsts:
        high = firsts[middle] if len(firsts) % 2 else (firsts[middle - 1] + firsts[middle]) / 2
    most = sorted(losses, key=lambda w: (-cost[w], w))
    rose = [w for w in losses if len(losses[w]) > 1 and losses[w][-1] > losses[w][0]]
    stuck = [w for w in losses if len(losses[w]) > 1 and losses[w][-1] > high]
    rose.sort(key=lambda w: (losses[w][0] - losses[w][-1], w))
    stuck.sort(key=lambda w: (-losses[w][-1], w))
    return most[:limit], rose[:limit], stuck[:limit], losses


def names(rows: list[RowCost]) -> list[str]:
    return [row.where for row in rows]


# Sums of eighths: what is added up in another order is still the same number.
step = st.lists(
    st.tuples(
        st.sampled_from([f"rows.jsonl:{n}" for n in range(1, 7)]),
        st.integers(0, 80).map(lambda n: n / 8),
        st.sampled_from([0, 1, 2, 4]),
    ),
    max_size=6,
)


@given(st.lists(step, max_size=12), st.integers(1, 4))
def test_any_run_is_what_a_recount_says(steps: list[Step], limit: int) -> None:
    found = worst_rows(events(steps), limit)
    most, rose, stuck, losses = recount(steps, limit)
    assert (names(found.cost_most), names(found.rose), names(found.never_learned)) == (most, rose, stuck)
    assert (found.steps, found.rows, found.not_finite) == (len(steps), len(losses), 0)
    assert found.revisited == sum(len(visits) > 1 for visits in losses.values())
    for row in [*found.cost_most, *found.rose, *found.never_learned]:
        visits = losses[row.where]
        assert (row.visits, row.first, row.last) == (len(visits), visits[0], visits[-1])
        assert row.mean == row.cost / row.tokens


def test_shares_are_of_everything_and_add_up() -> None:
    steps: list[Step] = [[("a", 3.0, 3), ("b", 1.0, 1)], [("c", 4.0, 8)]]
    found = worst_rows(events(steps), 10)
    assert found.total == 8
    assert {row.where: row.share for row in found.cost_most} == {"a": 3 / 8, "b": 1 / 8, "c": 0.5}


def test_the_three_kinds_on_a_run_that_can_be_seen_through() -> None:
    """`good` is learned, `worse` rises, `stuck` stays, `once` is seen once; first visits: 2, 1, 4, 3."""
    steps: list[Step] = [
        [("good", 8.0, 4), ("worse", 4.0, 4), ("stuck", 16.0, 4), ("once", 12.0, 4)],
        [("good", 0.4, 4), ("worse", 6.0, 4), ("stuck", 12.0, 4)],
    ]
    found = worst_rows(events(steps))
    assert found.high == 2.5
    assert names(found.cost_most) == ["stuck", "once", "worse", "good"]
    assert names(found.rose) == ["worse"]
    assert names(found.never_learned) == ["stuck"]
    stuck = found.never_learned[0]
    assert stuck == RowCost("stuck", 2, 8, 28.0, 28 / 58.4, first=4.0, last=3.0, mean=3.5)


def test_turns_of_one_row_in_one_step_are_one_visit() -> None:
    steps: list[Step] = [[("chat", 6.0, 2), ("chat", 2.0, 6)], [("chat", 4.0, 8)]]
    row = worst_rows(events(steps)).cost_most[0]
    assert (row.visits, row.first, row.last, row.tokens) == (2, 1.0, 0.5, 16)


def test_the_limit_cuts_the_lists_and_not_the_counts() -> None:
    steps: list[Step] = [[(f"r{n}", 1.0, 1) for n in range(9)], [(f"r{n}", 2.0 + n, 1) for n in range(9)]]
    found = worst_rows(events(steps), 2)
    assert names(found.rose) == names(found.never_learned) == names(found.cost_most) == ["r8", "r7"]
    assert (found.rose_count, found.never_learned_count) == (9, 9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_does_not_spoil_the_others(bad: float) -> None:
    steps: list[Step] = [[("a", 1.0, 1), ("b", bad, 1)], [("a", 0.5, 1), ("b", 2.0, 1)]]
    found = worst_rows(events(steps))
    assert found.not_finite == 1
    assert names(found.cost_most) == ["b", "a"]
    assert (found.total, found.revisited, found.rose_count) == (3.5, 1, 0)


def test_without_steps_or_targets_there_is_nothing() -> None:
    empty = WorstRows(0, 0, 0, 0.0, None, 0, [], [], 0, [], 0)
    assert worst_rows([]) == empty
    assert worst_rows([{"type": "end", "step": 0}, {"type": "eval", "step": 1}]) == empty
    untaught = worst_rows(events([[("a", 0.0, 0)]]))
    assert (untaught.steps, untaught.rows, untaught.high) == (1, 0, None)


def test_memory_is_that_of_the_rows_however_long_the_run() -> None:
    def run(steps: int) -> Iterator[dict[str, Any]]:
        draw = random.Random(0)
        for number in range(steps):
            rows = [[f"rows.jsonl:{draw.randrange(500)}", draw.random(), 2] for _ in range(8)]
            yield {"type": "step", "step": number, "examples": rows}

    def peak(steps: int) -> int:
        tracemalloc.start()
        assert worst_rows(run(steps)).rows == 500
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8000) < 1.5 * peak(1000)
