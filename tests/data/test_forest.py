"""The forest's layout, and the plan that splits a step."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.data import forest as forest_module
from surefoot.data.forest import Forest, plan, plant, slots
from surefoot.data.rows import Example
from tests import tiny
from tests.data import naive_forest


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


def path(forest: Forest, slot: int) -> list[int]:
    """Token ids from the root to a slot, by the rule of who sees whom."""
    end = forest.subtree_end_T.tolist()
    return [int(forest.ids_T[k]) for k in range(slot + 1) if k <= slot < end[k]]


def told(forest: Forest) -> list[list[tuple[tuple[int, ...], int, float]]]:
    """What each example's targets are predicted from, their labels and weights."""
    out: list[list[tuple[tuple[int, ...], int, float]]] = [[] for _ in forest.examples]
    targets = (forest.target_example_N, forest.target_slot_N, forest.label_N, forest.weight_N)
    for owner, slot, label, weight in zip(*(x.tolist() for x in targets), strict=True):
        out[owner].append((tuple(path(forest, slot)), label, weight))
    return out


def test_a_shared_prompt_has_its_slots_once_and_a_target_of_each_child() -> None:
    of = [
        Example(np.array([11, 12]), np.array([22, 23]), 0, "a"),
        Example(np.array([11, 12]), np.array([21, 23]), 1, "b"),
        Example(np.array([11, 12]), np.array([21]), 2, "c"),
        Example(np.array([11]), np.array([12]), 3, "d"),
    ]
    forest = plant(of, merge=True)
    assert forest.ids_T.tolist() == [11, 12, 21, 22]
    assert forest.position_T.tolist() == [0, 1, 2, 2]
    assert forest.subtree_end_T.tolist() == [4, 4, 3, 4]
    assert forest.target_slot_N.tolist() == [1, 3, 1, 2, 1, 0]
    assert forest.label_N.tolist() == [22, 23, 21, 23, 21, 12]
    assert forest.target_example_N.tolist() == [0, 0, 1, 1, 2, 3]
    assert forest.branches
    assert not plant(of).branches


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 20))
def test_merged_examples_see_what_they_see_alone(seed: int, count: int) -> None:
    of = tiny.family(seed, count)
    alone, merged = plant(of), plant(of, merge=True)
    assert told(merged) == told(alone)
    paths = [tuple(path(merged, slot)) for slot in range(merged.slots)]
    assert len(set(paths)) == len(paths)  # nothing is computed twice
    assert [len(p) - 1 for p in paths] == merged.position_T.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(1, 20), st.integers(1, 150))
def test_a_plan_with_merging_keeps_the_budget_and_the_step(seed: int, count: int, budget: int) -> None:
    of = tiny.family(seed, count)
    batches = plan(of, budget, merge=True)
    assert sorted(id(e) for batch in batches for e in batch) == sorted(map(id, of))
    assert all(plant(batch, merge=True).slots <= max(budget, *map(slots, batch)) for batch in batches)


def test_examples_that_share_a_prefix_go_together() -> None:
    prompts = [np.full(40, i + 3, np.int32) for i in range(4)]
    answers = tiny.examples([(0, 5)] * 16)
    of = [Example(prompts[i % 4], e.completion_ids, i, str(i)) for i, e in enumerate(answers)]
    batches = plan(of, 60, merge=True)
    assert [sorted(e.row % 4 for e in batch) for batch in batches] == [[i] * 4 for i in range(4)]
    assert len(plan(of, 60)) == 16


token_lists = st.lists(st.integers(0, 1), max_size=40)
few_tokens = st.lists(
    st.builds(
        lambda prompt, completion, weight: Example(
            np.array(prompt, np.int32), np.array(completion, np.int32), 0, "here", weight
        ),
        token_lists,
        st.lists(st.integers(0, 1), min_size=2, max_size=6),
        st.sampled_from([1.0, 0.5]),
    ),
    min_size=1,
    max_size=12,
)
"""Examples that have much in common, completions too."""


@settings(max_examples=100, deadline=None)
@given(
    few_tokens | st.integers(0, 100_000).map(tiny.family),
    st.booleans(),
    st.integers(1, 150),
    st.sampled_from([(16, 1 << 18), (1, 4), (2, 1)]),
)
def test_all_at_once_is_what_one_by_one_would_give(
    of: list[Example], merge: bool, budget: int, compared: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forest_module, "FIRST_COMPARED", compared[0])
        patch.setattr(forest_module, "COMPARED", compared[1])
        fast, batches = plant(of, merge), plan(of, budget, merge)
    slow = naive_forest.plant(of, merge)
    assert fast.examples == slow.examples
    for field in fields(fast)[1:]:
        one, other = getattr(fast, field.name), getattr(slow, field.name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other), field.name
    expected = naive_forest.plan(of, budget, merge)
    assert [list(map(id, batch)) for batch in batches] == [list(map(id, batch)) for batch in expected]
