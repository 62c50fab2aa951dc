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

import numpy as np
import torch

from surefoot.data.rows import Example


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


def _sequence(example: Example) -> np.ndarray:
    """The tokens of an example that have slots, int64."""
    return np.concatenate([example.prompt_ids, example.completion_ids])[:-1].astype(np.int64)


def _by_prefix(sequences: Sequence[np.ndarray]) -> list[int]:
    """Indices in lexicographic order, ties as given: neighbours share the longest prefixes."""
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(keys)), key=keys.__getitem__)


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length


def plant(examples: Sequence[Example], merge: bool = False) -> Forest:
    """The forest of `examples`; with `merge`, common prefixes share slots, else each is a tree of its own.

    Targets stand in the order of the examples as given, whatever the order of the slots.
    """
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
    """Split a step into micro-batches of at most `budget` slots (one longer example stands alone).

    1. Examples that share a prefix (with `merge`) stay in their order, cut where the budget is full.
    2. These pieces, and examples that share nothing, go first fit, largest first, ties as given.

    The same step is always split the same way.
    """
    if budget < 1:
        raise ValueError(f"the token budget of a micro-batch must be positive, not {budget}")
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
