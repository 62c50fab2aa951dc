"""The forest's layout, and the plan that splits a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.data.forest import plan, plant, slots
from surefoot.data.rows import Example
from tests import tiny


def test_slots_positions_and_targets_of_two_examples() -> None:
    of = [
        Example(np.array([11, 12, 13]), np.array([21, 22]), 0, "a"),
        Example(np.array([14]), np.array([23, 24, 25]), 1, "b", weight=0.5),
    ]
    forest = plant(of)
    assert forest.ids_T.tolist() == [11, 12, 13, 21, 14, 23, 24]  # the last completion token has no slot
    assert forest.position_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert forest.subtree_end_T.tolist() == [4, 4, 4, 4, 7, 7, 7]
    assert forest.target_slot_N.tolist() == [2, 3, 4, 5, 6]
    assert forest.label_N.tolist() == [21, 22, 23, 24, 25]
    assert forest.weight_N.tolist() == [1, 1, 0.5, 0.5, 0.5]
    assert forest.target_example_N.tolist() == [0, 0, 1, 1, 1]
    assert forest.trees == [(0, 4), (4, 7)]


def test_an_empty_prompt_leaves_the_first_token_unpredicted() -> None:
    forest = plant([Example(np.array([], np.int32), np.array([7, 8, 9]), 0, "a")])
    assert forest.ids_T.tolist() == [7, 8]
    assert forest.target_slot_N.tolist() == [0, 1]
    assert forest.label_N.tolist() == [8, 9]


lengths = st.lists(st.tuples(st.integers(0, 50), st.integers(2, 40)), min_size=1, max_size=20)


@given(lengths)
def test_every_target_is_predicted_from_the_token_before_it(shape: list[tuple[int, int]]) -> None:
    of = tiny.examples(shape)
    forest = plant(of)
    for slot, label, owner in zip(forest.target_slot_N, forest.label_N, forest.target_example_N, strict=True):
        whole = np.concatenate([of[owner].prompt_ids, of[owner].completion_ids])
        place = int(forest.position_T[slot])
        assert forest.ids_T[slot] == whole[place]
        assert label == whole[place + 1]
    assert len(forest.label_N) == sum(e.targets for e in of)


@given(lengths)
def test_blocks_hold_every_slot_once_and_know_its_place(shape: list[tuple[int, int]]) -> None:
    forest = plant(tiny.examples(shape))
    flat = torch.cat([block.flatten() for block in forest.blocks])
    assert flat[forest.place_T].tolist() == list(range(len(forest.ids_T)))


@given(lengths, st.integers(1, 200))
def test_a_plan_keeps_every_example_once_within_the_budget(shape: list[tuple[int, int]], budget: int) -> None:
    of = tiny.examples(shape)
    batches = plan(of, budget)
    assert sorted(e.row for batch in batches for e in batch) == list(range(len(of)))
    assert all(len(batch) == 1 or sum(map(slots, batch)) <= budget for batch in batches)
    assert [[e.row for e in b] for b in plan(of, budget)] == [[e.row for e in b] for b in batches]


def test_a_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        plan(tiny.examples([(1, 2)]), 0)
