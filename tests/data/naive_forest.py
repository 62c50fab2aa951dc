"""The forest's layout and the plan, example by example: what `data.forest` does for all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from surefoot.data.forest import Forest, common_prefix, slots
from surefoot.data.rows import Example


def _sequence(example: Example) -> np.ndarray:
    """The tokens of an example that have slots, int64."""
    return np.concatenate([example.prompt_ids, example.completion_ids])[:-1].astype(np.int64)


def _by_prefix(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices in lexicographic order, ties as given: neighbours share the longest prefixes."""
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(keys)), key=keys.__getitem__)


def plant(examples: Sequence[Example], merge: bool = False) -> Forest:
    """As `data.forest.plant`: the path to the last slot is kept, and each example is laid out along it."""
    sequences = [_sequence(example) for example in examples]
    order = _by_prefix(sequences) if merge else range(len(examples))
    total = sum(map(len, sequences))
    ids, position, end = (np.empty(total, np.int64) for _ in range(3))
    path = np.empty(max(map(len, sequences), default=0), np.int64)  # slot at each depth of the last example
    target_slots: list[np.ndarray] = [path] * len(examples)
    before, start = np.empty(0, np.int64), 0
    for index in order:
        tokens, count = sequences[index], examples[index].targets
        shared = common_prefix(before, tokens) if merge else 0
        end[path[shared : len(before)]] = start  # these have seen their last descendant
        grown = start + len(tokens) - shared
        path[shared : len(tokens)] = np.arange(start, grown)
        ids[start:grown] = tokens[shared:]
        position[start:grown] = np.arange(shared, len(tokens))
        target_slots[index] = path[len(tokens) - count : len(tokens)].copy()
        before, start = tokens, grown
    end[path[: len(before)]] = start

    labels = [np.append(e.prompt_ids, e.completion_ids)[e.tokens - e.targets :] for e in examples]
    counts = [example.targets for example in examples]
    weights = np.repeat([example.weight for example in examples], counts)
    return Forest(
        examples=tuple(examples),
        ids_T=torch.from_numpy(ids[:start]),
        position_T=torch.from_numpy(position[:start]),
        subtree_end_T=torch.from_numpy(end[:start]),
        target_slot_N=torch.from_numpy(np.concatenate(target_slots)),
        label_N=torch.from_numpy(np.concatenate(labels).astype(np.int64)),
        weight_N=torch.from_numpy(weights.astype(np.float64)),
        target_example_N=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
    )


def plan(examples: Sequence[Example], budget: int, merge: bool = False) -> list[list[Example]]:
    """As `data.forest.plan`: each piece goes into the first micro-batch that has room, looked at one by one."""
    batches: list[list[Example]] = []
    room: list[int] = []
    for need, piece in sorted(_pieces(examples, budget, merge), key=lambda piece: -piece[0]):
        place = next((i for i, free in enumerate(room) if free >= need), None)
        if place is None:
            batches.append(piece)
            room.append(budget - need)
        else:
            batches[place] += piece
            room[place] -= need
    return batches


def _pieces(examples: Sequence[Example], budget: int, merge: bool) -> list[tuple[int, list[Example]]]:
    """(slots, examples) of what should stay together, none above the budget that could be smaller."""
    if not merge:
        return [(slots(example), [example]) for example in examples]
    sequences = [_sequence(example) for example in examples]
    pieces: list[tuple[int, list[Example]]] = []
    before = np.empty(0, np.int64)
    for index in _by_prefix(sequences):
        tokens = sequences[index]
        shared = common_prefix(before, tokens)
        grown = len(tokens) - shared
        if shared and pieces[-1][0] + grown <= budget:
            pieces[-1] = (pieces[-1][0] + grown, [*pieces[-1][1], examples[index]])
        else:
            pieces.append((len(tokens), [examples[index]]))
        before = tokens
    return pieces
