"""Examples → forest: the tokens of a micro-batch, one slot a token, and what each slot must predict.

1. `plan` splits a step's examples into micro-batches by a budget of slots; it never changes the step.
   Examples that share a prefix go together.
2. `plant` lays a micro-batch out in depth-first preorder: slot q sees slot k iff k <= q < subtree_end[k].

Shapes: T slots, N targets, E examples.

With `merge`, examples with a common prefix share its slots, and where they part one slot has a target of each:
autograd adds up what flows back into it, so the gradient is that of the separate examples. Without, every
example is a tree of its own (plain packing). The last completion token is only ever a label, so it has no slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch

from surefoot.data.rows import Example

FIRST_COMPARED = 16
"""Tokens of two sequences that are compared at once, to begin with; more while they are alike, and"""
COMPARED = 1 << 18
"""at most so many of all pairs, which fits into a cache."""


@dataclass(frozen=True)
class Forest:
    """One micro-batch as the model sees it."""

    examples: tuple[Example, ...]
    ids_T: torch.Tensor
    """int64 token ids."""
    position_T: torch.Tensor
    """int64 depth in tokens from the root."""
    subtree_end_T: torch.Tensor
    """int64, one past the last slot below this token."""
    target_slot_N: torch.Tensor
    """int64 slot whose hidden state predicts the target."""
    label_N: torch.Tensor
    """int64 token id to predict."""
    weight_N: torch.Tensor
    """float64 weight of the target's loss."""
    target_example_N: torch.Tensor
    """int64 index into `examples`."""

    @property
    def slots(self) -> int:
        return len(self.ids_T)

    @cached_property
    def host(self) -> tuple[np.ndarray, np.ndarray]:
        """`position_T` and `subtree_end_T` in the host's memory, for what is laid out there. Waits for the device,
        but for a forest that `to` has brought there."""
        return self.position_T.cpu().numpy(), self.subtree_end_T.cpu().numpy()

    @cached_property
    def trees(self) -> list[tuple[int, int]]:
        """(first slot, one past the last slot) of each tree, in order."""
        starts = np.flatnonzero(self.host[0] == 0).tolist()
        return list(zip(starts, [*starts[1:], len(self.ids_T)], strict=True))

    @cached_property
    def longest(self) -> int:
        """Slots of the largest tree; no path is longer."""
        return max(end - start for start, end in self.trees)

    @cached_property
    def branches(self) -> bool:
        """Whether any two slots have the same parent."""
        return len(branch_starts(self.host[0])) > len(self.trees)

    def to(self, device: torch.device) -> Forest:
        """The same forest on `device`; the host goes on without waiting for it."""
        host = self.host
        if self.ids_T.device == device:
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        moved = replace(self, **{name: sent(x, device) for name, x in tensors.items()})
        vars(moved)["host"] = host
        return moved


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host's on `device`; to a GPU through page-locked memory, so that the host does not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def branch_starts(position_T: np.ndarray) -> np.ndarray:
    """Slots that do not follow their parent: roots, and every child of a slot but its first. Ascending."""
    follows = np.diff(position_T, prepend=-1) == 1
    follows[position_T == 0] = False
    return np.flatnonzero(~follows)


def slots(example: Example) -> int:
    """Slots of an example on its own: all its tokens but the last."""
    return example.tokens - 1


def _flat(examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """int64: all tokens of the examples, one after the other; and where each begins, with one past the last."""
    parts = [part for example in examples for part in (example.prompt_ids, example.completion_ids)]
    starts = np.cumsum([0, *(example.tokens for example in examples)])
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64, copy=False), starts


def _by_prefix(tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [E]: indices of the examples in lexicographic order, ties as given, so that neighbours share the
    longest prefixes; and how many slots each of them, in that order, shares with the one before."""
    raw, bounds = tokens.astype(">u4").tobytes(), starts.tolist()
    keys = [raw[4 * start : 4 * end - 4] for start, end in pairwise(bounds)]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    first, count = starts[order], starts[order + 1] - starts[order] - 1
    shared = np.zeros(len(order), np.int64)
    both = np.minimum(count[1:], count[:-1])
    open_, done, width = np.arange(len(both)), 0, FIRST_COMPARED
    while len(open_):  # pairs of neighbours that are alike so far
        at = done + np.arange(width)
        inside = at < both[open_, None]
        one, other = (np.where(inside, first[open_ + i, None] + at, 0) for i in (0, 1))
        alike = inside & (tokens[one] == tokens[other])
        length = np.where(alike.all(1), width, alike.argmin(1))
        shared[open_ + 1] += length
        open_, done = open_[length == width], done + width
        width = max(FIRST_COMPARED, min(2 * width, COMPARED // max(1, len(open_))))
    return order, shared


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


def plant(examples: Sequence[Example], merge: bool = False) -> Forest:
    """The forest of `examples`; with `merge`, common prefixes share slots, else each is a tree of its own.

    Targets stand in the order of the examples as given, whatever the order of the slots.
    """
    tokens, starts = _flat(examples)
    lone = np.arange(len(examples)), np.zeros(len(examples), np.int64)
    order, shared = _by_prefix(tokens, starts) if merge else lone
    grown = (np.diff(starts) - 1)[order] - shared
    begin = np.cumsum(grown) - grown
    total = int(grown.sum())
    position = np.arange(total) - np.repeat(begin - shared, grown)
    end = np.repeat(begin + grown, grown)

    count = np.array([example.targets for example in examples], np.int64)
    base = np.cumsum(count) - count
    among = np.arange(int(count.sum())) - np.repeat(base, count)
    depth = np.diff(starts) - 1 - count  # of the slot that predicts an example's first target
    of_depth_0 = np.empty(len(examples), np.int64)
    of_depth_0[order] = begin - shared
    target_slot = np.repeat(of_depth_0 + depth, count) + among
    if shared.any():
        _share(shared.tolist(), begin.tolist(), end, depth[order].tolist(), base[order].tolist(), target_slot)
    weights = np.repeat([float(example.weight) for example in examples], count)
    return Forest(
        examples=tuple(examples),
        ids_T=torch.from_numpy(tokens[np.repeat(starts[order], grown) + position]),
        position_T=torch.from_numpy(position),
        subtree_end_T=torch.from_numpy(end),
        target_slot_N=torch.from_numpy(target_slot),
        label_N=torch.from_numpy(tokens[np.repeat(starts[1:] - count, count) + among]),
        weight_N=torch.from_numpy(weights),
        target_example_N=torch.from_numpy(np.repeat(np.arange(len(examples)), count)),
    )


def _share(
    shared: list[int],
    begin: list[int],
    end: np.ndarray,
    depth: list[int],
    base: list[int],
    target_slot: np.ndarray,
) -> None:
    """Mend what `plant` has laid out as if nobody used an earlier example's slots: where their subtrees end, and
    the targets whose slot is one of them. All lists by example, in the order of the slots."""
    path: list[tuple[int, int, int]] = []  # the shared slots above: runs of (depth, one past it, slot)
    for index, prefix in enumerate(shared):
        while path and path[-1][1] > prefix:  # these have seen their last descendant
            low, high, slot = path.pop()
            cut = max(low, prefix)
            end[slot + cut - low : slot + high - low] = begin[index]
            if low < cut:
                path.append((low, cut, slot))
        for low, high, slot in reversed(path if depth[index] < prefix else ()):
            cut = max(low, depth[index])
            if cut < high:
                place = base[index] + cut - depth[index]
                target_slot[place : place + high - cut] = np.arange(slot + cut - low, slot + high - low)
        if index + 1 < len(shared) and shared[index + 1] > prefix:
            path.append((prefix, shared[index + 1], begin[index]))
    for low, high, slot in path:
        end[slot : slot + high - low] = len(end)


def plan(examples: Sequence[Example], budget: int, merge: bool = False) -> list[list[Example]]:
    """Split a step into micro-batches of at most `budget` slots (one longer example stands alone).

    1. Examples that share a prefix (with `merge`) stay in their order, cut where the budget is full.
    2. These pieces, and examples that share nothing, go first fit, largest first, ties as given.

    The same step is always split the same way.
    """
    if budget < 1:
        raise ValueError(f"the token budget of a micro-batch must be positive, not {budget}")
    pieces = sorted(_pieces(examples, budget, merge), key=lambda piece: -piece[0])
    batches: list[list[Example]] = []
    room = np.full(len(pieces), budget)  # of those not begun, too
    for need, piece in pieces:
        place = len(batches) if need > budget else int((room[: len(batches) + 1] >= need).argmax())
        if place == len(batches):
            batches.append([])
        batches[place] += piece
        room[place] -= need
    return batches


def _pieces(examples: Sequence[Example], budget: int, merge: bool) -> list[tuple[int, list[Example]]]:
    """(slots, examples) of what should stay together, none above the budget that could be smaller."""
    if not merge:
        return [(slots(example), [example]) for example in examples]
    tokens, starts = _flat(examples)
    pieces: list[tuple[int, list[Example]]] = []
    for index, shared in zip(*(one.tolist() for one in _by_prefix(tokens, starts)), strict=True):
        count = slots(examples[index])
        if shared and pieces[-1][0] + count - shared <= budget:
            piece = pieces[-1][1]
            piece.append(examples[index])
            pieces[-1] = pieces[-1][0] + count - shared, piece
        else:
            pieces.append((count, [examples[index]]))
    return pieces
