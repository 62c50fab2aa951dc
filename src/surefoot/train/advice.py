"""A way of training does not fit: what would make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from surefoot.train.paper import Place, Rows, Way, largest
from surefoot.train.sketch import Sizes

MOST_RANKS = 4096


@dataclass(frozen=True)
class Problem:
    """What was asked, and what could be asked instead."""

    found: Sizes
    rows: Rows
    place: Place
    way: Way
    lora: Sizes | None
    """With an adapter; None where that is what was asked, or is not to be had."""
    spread: Callable[[int], Place]
    """The place with so many ranks."""

    def fits(self) -> bool:
        return largest(self.found, self.rows, self.place, self.way) is not None


def suggestions(problem: Problem) -> list[str]:
    """Options that alone make it fit, the mildest first; where none does, on top of recomputing and sharding.

    Empty when nothing helps.
    """
    way, several = problem.way, problem.place.ranks > 1
    both = replace(way, recompute=True, shard=way.shard or several)
    single = [replace(way, recompute=True), replace(way, shard=both.shard)]
    found = [_words(way, other) for other in single if other != way and replace(problem, way=other).fits()]
    if not found and both not in (way, *single) and replace(problem, way=both).fits():
        found = [_words(way, both)]
    if more := _alone(problem, ""):
        return found + more
    if found or both == way:
        return found
    return _alone(replace(problem, way=both), _words(way, both) + ", ")


def _words(way: Way, other: Way) -> str:
    """The options that lead from one to the other."""
    words = ["gradient_checkpointing=true"] * (other.recompute > way.recompute)
    words += ["shard=full"] * (other.shard > way.shard)
    return ", ".join(words)


def _alone(problem: Problem, before: str) -> list[str]:
    """Adapter, optimizer, length, number of ranks: each that would do."""
    out = []
    if (
        problem.lora is not None
        and replace(problem, found=problem.lora, way=replace(problem.way, peft=True)).fits()
    ):
        out.append(f"{before}use_peft=true")
    if problem.found.state and replace(problem, found=replace(problem.found, state=0)).fits():
        out.append(f"{before}optim=adafactor")
    if (length := _length(problem)) is not None:
        out.append(f"{before}max_length={length}")
    if (ranks := _ranks(problem)) is not None:
        kind = "GPUs" if problem.place.cuda else "processes"
        out.append(f"{before}{ranks} {kind}" + ("" if problem.way.shard else " with shard=full"))
    return out


def _length(problem: Problem) -> int | None:
    """The largest max_length that fits, if there is one below the longest row that leaves the average row whole."""
    rows, slots = problem.rows, 0
    for bit in reversed(range(rows.longest.bit_length())):
        tried = slots + (1 << bit)
        if tried < rows.longest and replace(problem, rows=replace(rows, longest=tried)).fits():
            slots = tried
    return slots + 1 if slots >= rows.mean else None


def _ranks(problem: Problem) -> int | None:
    """The fewest ranks that fit, of doubled numbers; None if as many as there are would do, were they sharded."""
    ranks, way = problem.place.ranks * 2, replace(problem.way, shard=True)
    if problem.place.ranks > 1 and replace(problem, way=way).fits():
        return None
    while ranks <= MOST_RANKS:
        if replace(problem, place=problem.spread(ranks), way=way).fits():
            return ranks
        ranks *= 2
    return None
