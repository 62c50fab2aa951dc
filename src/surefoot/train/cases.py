"""Rows that tell one way of computing from another: what `selfcheck` compares on.

A leak between rows shows only side by side, a wrong branch only below a shared prefix, a wrong window only beyond
it. Where the data has no such rows, they are cut out of those it has: what is checked is the computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from surefoot.data.forest import common_prefix, slots
from surefoot.data.rows import Example

BRIEF = 60
"""Tokens of the short form's rows, together."""
POOL = 64
"""Of so many of the shortest examples, the two that share the longest prefix are taken."""
ALL = 1 << 30
"""A budget that no step exceeds."""


@dataclass(frozen=True)
class Case:
    """Some examples, and the ways in which they go through the model."""

    name: str
    examples: tuple[Example, ...]
    splits: tuple[tuple[str, int], ...] = ()
    """More ways: name and most slots of a micro-batch. The first way is all at once."""

    @property
    def ways(self) -> tuple[tuple[str, int], ...]:
        return ((self.name, ALL), *self.splits)


def cases(examples: Sequence[Example], window: int | None, rows: int) -> list[Case]:
    """The full form's cases. `rows` are those of the last one: of the shorter half, evenly spread."""
    by_length = sorted(examples, key=slots)
    first, second = _sharing(by_length)
    third = _other_answer(first, by_length)
    family = tuple(e for e in (first, second, third) if e is not None)
    apart = _apart(family[1] if len(family) > 1 else first, first)
    out = [Case("two short rows", (first, apart))] if apart is not None else []
    if len(family) > 1:
        out.append(Case("a shared prefix", family))
    beyond = _beyond(by_length, window)
    if beyond is not None:
        out.append(Case("beyond the sliding window", (beyond,) if beyond is first else (beyond, first)))
    out.append(Case("a completion of one token", (_one_token(first), *family[1:2])))
    half = by_length[: max(rows, (len(by_length) + 1) // 2)]
    step = tuple(half[i] for i in dict.fromkeys(np.linspace(0, len(half) - 1, rows).round().astype(int)))
    halves = -(-sum(map(slots, step)) // 2)
    splits = (("the same, one row at a time", 1), ("the same, split in two", halves))
    out.append(Case(f"a step of {len(step)} rows", step, splits if len(step) > 1 else ()))
    return out


def brief_case(examples: Sequence[Example], window: int | None) -> Case:
    """The short form's rows: two that share a prefix and one that shares nothing and has one target; one beyond the
    sliding window if that is short. Cut to `BRIEF` tokens together."""
    by_length = sorted(examples, key=slots)
    first, second = _sharing(by_length)
    second = second or _other_answer(first, by_length)
    chosen = [first] if second is None else [first, second]
    apart = _apart(first, first)
    if apart is not None:
        chosen.append(_one_token(apart))
    if sum(example.tokens for example in chosen) > BRIEF:
        third = BRIEF // len(chosen) // 3
        shared = common_prefix(first.prompt_ids, second.prompt_ids) if second is not None else third
        chosen[:2] = [_cut(e, max(0, shared - third), shared + third, third) for e in chosen[:2]]
        chosen[2:] = [_tail(e, BRIEF // 3) for e in chosen[2:]]
    if window is not None and window <= BRIEF // 3:
        beyond = _beyond(by_length, window)
        chosen += [_tail(beyond, window + 9)] if beyond is not None else []
    return Case("a few short rows", tuple(chosen))


def _sharing(by_length: Sequence[Example]) -> tuple[Example, Example | None]:
    """Two short examples with the longest common prefix of their prompts, and different further on; the shortest
    and None where no two have one."""
    pool = sorted(by_length[:POOL], key=lambda e: (e.prompt_ids.tolist(), e.completion_ids.tolist()))
    best: tuple[Example, Example | None] = by_length[0], None
    longest = 0
    for a, b in pairwise(pool):
        common = common_prefix(a.prompt_ids, b.prompt_ids)
        same = np.array_equal(a.prompt_ids, b.prompt_ids) and np.array_equal(
            a.completion_ids, b.completion_ids
        )
        if common > longest and not same:
            longest, best = common, (a, b)
    return best


def _other_answer(example: Example, others: Sequence[Example]) -> Example | None:
    """The same prompt with the completion of another example."""
    if not len(example.prompt_ids):
        return None
    for other in others:
        if not np.array_equal(other.completion_ids, example.completion_ids):
            return replace(example, completion_ids=other.completion_ids)
    return None


def _apart(example: Example, other: Example) -> Example | None:
    """`example` without its first tokens, so that it has no prefix in common with `other`."""
    first = np.concatenate([other.prompt_ids, other.completion_ids])[0]
    ids = example.prompt_ids
    starts = np.flatnonzero(ids[1:] != first) + 1
    if len(starts):
        return replace(example, prompt_ids=ids[starts[0] :])
    ids = example.completion_ids
    starts = np.flatnonzero(ids[1:-1] != first) + 1
    return replace(example, prompt_ids=ids[:0], completion_ids=ids[starts[0] :]) if len(starts) else None


def _one_token(example: Example) -> Example:
    """With one target."""
    return replace(example, completion_ids=example.completion_ids[: 1 if len(example.prompt_ids) else 2])


def _beyond(by_length: Sequence[Example], window: int | None) -> Example | None:
    """The shortest example that outgrows the window: its last slots do not see its first."""
    return next((e for e in by_length if slots(e) > window), None) if window else None


def _cut(example: Example, start: int, end: int, completion: int) -> Example:
    """Prompt tokens `start` to `end` and the first of the completion."""
    prompt = example.prompt_ids[start:end]
    kept = max(completion, 1 if len(prompt) else 2)
    return replace(example, prompt_ids=prompt, completion_ids=example.completion_ids[:kept])


def _tail(example: Example, tokens: int) -> Example:
    """The last `tokens` tokens."""
    completion = example.completion_ids[-tokens:]
    prompt = example.prompt_ids[
        len(example.prompt_ids) - min(len(example.prompt_ids), tokens - len(completion)) :
    ]
    return replace(example, prompt_ids=prompt, completion_ids=completion)
