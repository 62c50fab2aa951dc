"""Examples → forest: the tokens of a micro-batch, one slot a token, and what each slot must predict.

1. `plan` splits a step's examples into micro-batches by a token budget; it never changes the step.
2. `plant` lays a micro-batch out in depth-first preorder: slot q sees slot k iff k <= q < subtree_end[k].

Shapes: T slots, N targets, E examples.

Every example is a tree of its own here (plain packing); examples with a common prefix do not share slots yet.
The last completion token is only ever a label, so it has no slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch

from surefoot.data.rows import Example

BLOCK = 16
"""Trees whose lengths differ by less than this stand side by side in attention."""


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

    @cached_property
    def trees(self) -> list[tuple[int, int]]:
        """(first slot, one past the last slot) of each tree, in order."""
        starts = (self.position_T == 0).nonzero().flatten().tolist()
        return list(zip(starts, [*starts[1:], len(self.ids_T)], strict=True))

    @cached_property
    def blocks(self) -> list[torch.Tensor]:
        """Trees of similar length side by side: int64 slots [B, L], shorter trees padded with slot 0 on the
        right. A block's lengths differ by less than `BLOCK` or an eighth."""
        return self._blocks_and_place[0]

    @cached_property
    def place_T(self) -> torch.Tensor:
        """int64 [T], where each slot stands in the flattened, concatenated blocks."""
        return self._blocks_and_place[1]

    @cached_property
    def _blocks_and_place(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        trees = sorted(self.trees, key=lambda tree: tree[1] - tree[0])
        blocks, place, filled = [], np.empty(len(self.ids_T), np.int64), 0
        while trees:
            shortest = trees[0][1] - trees[0][0]
            limit = shortest + max(BLOCK, shortest // 8)
            block = [tree for tree in trees if tree[1] - tree[0] < limit]
            trees = trees[len(block) :]
            width = max(end - start for start, end in block)
            slots_BL = np.zeros((len(block), width), np.int64)
            for row, (start, end) in enumerate(block):
                slots_BL[row, : end - start] = np.arange(start, end)
                place[start:end] = filled + row * width + np.arange(end - start)
            filled += slots_BL.size
            blocks.append(torch.from_numpy(slots_BL).to(self.ids_T.device))
        return blocks, torch.from_numpy(place).to(self.ids_T.device)

    def to(self, device: torch.device) -> Forest:
        """The same forest on `device`."""
        if self.ids_T.device == device:
            return self
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: x.to(device, non_blocking=True) for name, x in tensors.items()})


def slots(example: Example) -> int:
    """Slots of an example on its own: all its tokens but the last."""
    return example.tokens - 1


def plant(examples: Sequence[Example]) -> Forest:
    """The forest of `examples`, each a tree of its own, in the order given."""
    ids, positions, ends, target_slots, labels, weights, owners = [], [], [], [], [], [], []
    start = 0
    for index, example in enumerate(examples):
        tokens = np.concatenate([example.prompt_ids, example.completion_ids]).astype(np.int64)
        length, count = slots(example), example.targets
        ids.append(tokens[:-1])
        positions.append(np.arange(length))
        ends.append(np.full(length, start + length))
        target_slots.append(np.arange(start + length - count, start + length))
        labels.append(tokens[len(tokens) - count :])
        weights.append(np.full(count, example.weight, np.float64))
        owners.append(np.full(count, index))
        start += length

    def tensor(parts: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(parts))

    return Forest(
        examples=tuple(examples),
        ids_T=tensor(ids),
        position_T=tensor(positions),
        subtree_end_T=tensor(ends),
        target_slot_N=tensor(target_slots),
        label_N=tensor(labels),
        weight_N=tensor(weights),
        target_example_N=tensor(owners),
    )


def plan(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Split a step into micro-batches of at most `budget` slots (one longer example stands alone).

    First fit, longest first, ties in the order given, so the same step is always split the same way.
    """
    if budget < 1:
        raise ValueError(f"the token budget of a micro-batch must be positive, not {budget}")
    batches: list[list[Example]] = []
    room: list[int] = []
    for example in sorted(examples, key=slots, reverse=True):
        need = slots(example)
        place = next((i for i, free in enumerate(room) if free >= need), None)
        if place is None:
            batches.append([example])
            room.append(budget - need)
        else:
            batches[place].append(example)
            room[place] -= need
    return batches
