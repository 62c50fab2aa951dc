"""A run's events → the rows that cost most, that rose, and that were never learned.

A visit of a row is a step that learned from it; if several of its examples (turns) were in that step, or one of
them twice, they are one visit, added up. Its loss is the mean −log p over its supervised tokens there, in nats.

cost most      the largest sums of −log p over all visits, with their share of the run's whole sum
rose           visited twice or more, and the last visit's loss is above the first's; by how much it rose
never learned  visited twice or more, and the last visit's loss is still above `high`: the median, over all rows,
               of the loss at a row's first visit, which is what half of the rows cost before they were learned from

Five numbers are kept for each row, whatever the number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class RowCost:
    """What a row cost the run. Losses are −log p per supervised token, in nats."""

    where: str
    """`file:line` or `dataset[index]`."""
    visits: int
    tokens: int
    """Supervised tokens, over all visits."""
    cost: float
    """Sum of −log p, over all visits."""
    share: float
    """Its part of the sum over all rows."""
    first: float
    """Loss at its first visit."""
    last: float
    mean: float
    """Over all its tokens of all visits."""


@dataclass(frozen=True)
class WorstRows:
    """The worst rows of a run, worst first."""

    steps: int
    """Steps that were read."""
    rows: int
    """Rows that were visited."""
    revisited: int
    """Of these, visited twice or more: only they can have risen or been learned."""
    total: float
    """Sum of −log p over everything."""
    high: float | None
    """Loss from which on a row counts as not learned; None without rows."""
    not_finite: int
    """Visits whose loss was not a number; they are left out of everything."""
    cost_most: list[RowCost]
    rose: list[RowCost]
    rose_count: int
    """All that rose, whether listed or not."""
    never_learned: list[RowCost]
    never_learned_count: int


class _Tally:
    """The visits of one row so far."""

    __slots__ = ("cost", "first", "last", "tokens", "visits")

    def __init__(self) -> None:
        self.visits = self.tokens = 0
        self.cost = self.first = self.last = 0.0

    def visit(self, cost: float, tokens: int) -> None:
        self.last = cost / tokens
        if not self.visits:
            self.first = self.last
        self.visits += 1
        self.tokens += tokens
        self.cost += cost


def worst_rows(events: Iterable[Mapping[str, Any]], limit: int = 20) -> WorstRows:
    """Read the step events among `events` (as dicts, oldest first) once; list at most `limit` rows of a kind."""
    tallies: dict[str, _Tally] = {}
    steps = not_finite = 0
    for event in events:
        if event.get("type") != "step":
            continue
        steps += 1
        for where, (cost, tokens) in _visits(event).items():
            if not math.isfinite(cost):
                not_finite += 1
            elif tokens:
                tallies.setdefault(where, _Tally()).visit(cost, tokens)
    total = math.fsum(tally.cost for tally in tallies.values())
    high = median(tally.first for tally in tallies.values()) if tallies else None
    again = {where: tally for where, tally in tallies.items() if tally.visits > 1}
    rose = {where: tally for where, tally in again.items() if tally.last > tally.first}
    stuck = {where: tally for where, tally in again.items() if high is not None and tally.last > high}

    def top(among: Mapping[str, _Tally], by: Callable[[_Tally], float]) -> list[RowCost]:
        ordered = nsmallest(limit, among.items(), key=lambda pair: (-by(pair[1]), pair[0]))
        return [_row(where, tally, total) for where, tally in ordered]

    return WorstRows(
        steps=steps,
        rows=len(tallies),
        revisited=len(again),
        total=total,
        high=high,
        not_finite=not_finite,
        cost_most=top(tallies, lambda tally: tally.cost),
        rose=top(rose, lambda tally: tally.last - tally.first),
        rose_count=len(rose),
        never_learned=top(stuck, lambda tally: tally.last),
        never_learned_count=len(stuck),
    )


def _visits(event: Mapping[str, Any]) -> dict[str, tuple[float, int]]:
    """The step's examples by row: sum of −log p, tokens."""
    found: dict[str, tuple[float, int]] = {}
    for where, cost, tokens in event.get("examples", ()):
        before = found.get(where, (0.0, 0))
        found[where] = (before[0] + cost, before[1] + tokens)
    return found


def _row(where: str, tally: _Tally, total: float) -> RowCost:
    return RowCost(
        where=where,
        visits=tally.visits,
        tokens=tally.tokens,
        cost=tally.cost,
        share=tally.cost / total if total else 0.0,
        first=tally.first,
        last=tally.last,
        mean=tally.cost / tally.tokens,
    )
