"""Which losses raise an alarm, by those before them."""

from __future__ import annotations

import pytest

from surefoot.microscope.watchman import Watchman
from surefoot.train.step import ExampleLoss, Losses


def alarmed(losses: list[float]) -> list[int]:
    """Steps, from 1, whose loss raises an alarm."""
    watchman = Watchman([])
    found = []
    for step, loss in enumerate(losses, 1):
        rows = (ExampleLoss(f"a.jsonl:{step}", loss, 1),)
        one = Losses(loss, 2, 1, 1, 1, 0.0, 0.0, rows)
        if (alert := watchman.of_losses(one)) is not None:
            assert alert.kind == "high loss"
            assert f"a.jsonl:{step}" in alert.message
            found.append(step)
    return found


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([1.0] * 5 + [2.1], [6]),
        ([1.0] * 4 + [9.0], []),  # too early to tell what is usual
        ([1.0] * 25 + [2.0, 2.1], [27]),
        ([2.0**n for n in range(9)], [6, 7, 8, 9]),  # a run that goes wrong from the first step on
        ([4.0 - 0.1 * n for n in range(30)], []),
        ([0.0] * 10 + [0.5], []),  # nothing is twice as much as nothing
        ([9.0] * 20 + [1.0] * 20 + [3.0], [41]),  # of the last 20 only
    ],
)
def test_a_loss_is_compared_with_what_is_usual(losses: list[float], steps: list[int]) -> None:
    assert alarmed(losses) == steps
