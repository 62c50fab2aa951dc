"""A way of training does not fit: what would make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from surefoot.train.blueprint import Blueprint
from surefoot.train.paper import Place, Rows, Way, largest

MOST_RANKS = 4096


@dataclass(frozen=True)
class Problem:
    """What was asked, and what could be asked instead."""

    found: Blueprint
    rows: Rows
    place: Place
    way: Way
    lora: Blueprint | None
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
    mild = [
        ("gradient_checkpointing=true", replace(way, recompute=True)),
        ("shard=full", replace(way, shard=several)),
        ("gradient_checkpointing=true, shard=full", replace(way, recompute=True, shard=several)),
    ]
    found = [words for words, other in mild if other != way and replace(problem, way=other).fits()]
    found = found if len(found) < len(mild) else found[:2]
    if more := _alone(problem, ""):
        return found + more
    if found:
        return found
    words, saving = mild[2] if several else mild[0]
    if saving == way:
        return []
    missing = [word for word in words.split(", ") if _adds(word, way)]
    return _alone(replace(problem, way=saving), ", ".join(missing) + ", ")


def _adds(word: str, way: Way) -> bool:
    return not (way.shard if word.startswith("shard") else way.recompute)


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
    """The largest max_length that fits, if there is one below the longest row."""
    rows, slots = problem.rows, 0
    for bit in reversed(range(rows.longest.bit_length())):
        tried = slots + (1 << bit)
        cut = replace(rows, longest=tried, mean=min(rows.mean, tried))
        if tried < rows.longest and replace(problem, rows=cut).fits():
            slots = tried
    return slots + 1 if slots else None


def _ranks(problem: Problem) -> int | None:
    """The fewest ranks that fit, of doubled numbers."""
    ranks, way = problem.place.ranks * 2, replace(problem.way, shard=True)
    while ranks <= MOST_RANKS:
        if replace(problem, place=problem.spread(ranks), way=way).fits():
            return ranks
        ranks *= 2
    return None
