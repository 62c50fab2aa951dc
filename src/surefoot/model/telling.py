"""The few short examples that tell how a model can be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from surefoot.data.forest import slots
from surefoot.data.rows import Example

BRIEF = 64
"""Tokens that an example is cut to."""


def telling(examples: Sequence[Example], vocabulary: int, window: int | None) -> list[Example]:
    """Two short examples, two that part from the first in its completion and at its end, and one beyond the
    sliding window if there is any; long ones cut, for their logits are wanted in full precision."""
    by_length = sorted(examples, key=slots)
    first, second = (cut(example, BRIEF) for example in (by_length * 2)[:2])
    whole = np.append(first.prompt_ids, first.completion_ids)
    middle = max(1, len(first.prompt_ids) + len(first.completion_ids) // 2)

    def turned(prompt: np.ndarray, after: int) -> Example:
        """Goes on with another token than `after`, so that it has a slot of its own whatever the rows are."""
        token = (int(after) + 1) % vocabulary
        return Example(prompt, np.append([token], second.completion_ids), first.row, first.where)

    parting = [turned(whole[:at], whole[min(at, len(whole) - 1)]) for at in (middle, len(whole))]
    chosen = [first, second, *parting, turned(whole[:0], whole[0])]
    if window:
        beyond = [example for example in by_length if slots(example) > window][:1]
        chosen += [cut(example, window + BRIEF) for example in beyond]
    return chosen


def cut(example: Example, tokens: int) -> Example:
    """At most `tokens` tokens of an example, from the beginning of its prompt and of its completion."""
    completion_ids = example.completion_ids[: max(tokens // 2, tokens - len(example.prompt_ids))]
    return replace(
        example, prompt_ids=example.prompt_ids[: tokens - len(completion_ids)], completion_ids=completion_ids
    )
