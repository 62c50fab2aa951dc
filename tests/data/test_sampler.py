"""Which rows make which step: a pure function of (seed, epoch, step)."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.data.sampler import Sampler


def test_an_epoch_sees_every_row_once_and_the_last_step_takes_the_rest() -> None:
    sampler = Sampler(rows=10, rows_per_step=4, seed=1)
    assert sampler.steps_per_epoch == 3
    steps = [sampler.step(i).tolist() for i in range(3)]
    assert [len(step) for step in steps] == [4, 4, 2]
    assert sorted(row for step in steps for row in step) == list(range(10))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sampler = Sampler(rows=50, rows_per_step=50, seed=1)
    assert sampler.step(0).tolist() != sampler.step(1).tolist()
    assert sampler.step(7).tolist() == Sampler(50, 50, seed=1).step(7).tolist()
    assert sampler.step(0).tolist() != Sampler(50, 50, seed=2).step(0).tolist()


@pytest.mark.parametrize("split", [(1, 8), (8, 1), (2, 4)])
def test_only_the_product_counts(split: tuple[int, int]) -> None:
    a, b = split
    np.testing.assert_array_equal(Sampler(30, a * b, 5).step(4), Sampler(30, 8, 5).step(4))


def test_sequential_is_the_order_of_the_file() -> None:
    sampler = Sampler(rows=5, rows_per_step=2, shuffle=False)
    assert [sampler.step(i).tolist() for i in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]


def test_an_epoch_is_drawn_once_and_any_step_may_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = {
        (epoch, place): Sampler(10, 4, 3).step(3 * epoch + place) for epoch in (0, 1) for place in range(3)
    }
    drawn: list[int] = []
    draw = Sampler._order
    monkeypatch.setattr(Sampler, "_order", lambda self, epoch: drawn.append(epoch) or draw(self, epoch))
    sampler = Sampler(10, 4, 3)
    for epoch, place in [(0, 0), (0, 2), (1, 1), (1, 0), (0, 1)]:
        np.testing.assert_array_equal(sampler.step(3 * epoch + place), fresh[epoch, place])
    assert drawn == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        sampler.step(0)[0] = 9
    assert sampler == Sampler(10, 4, 3)


def test_the_order_is_pinned() -> None:
    """A change of the generator would silently change every resumed run."""
    assert Sampler(rows=8, rows_per_step=8, seed=42).step(0).tolist() == [7, 0, 4, 2, 1, 3, 5, 6]
