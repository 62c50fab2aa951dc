"""Fault 1: killed at a random time. The same command goes on, and ends with the bits of a run that was not."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.children import Zygote, clock_free, events, last_step, state_hashes
from tests.faults.conftest import Recipe


def test_a_run_killed_again_and_again_is_the_run_that_was_not(
    zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    whole = recipe("whole.yaml", output_dir=str(tmp_path / "whole"))
    done = zygote.run(["train", whole], tmp_path)
    assert done.wait() == 0, done.err
    chance, killed, broken = random.Random(1), 0, tmp_path / "run"
    argv = ["train", recipe()]
    while True:
        child = zygote.start(argv, tmp_path)
        stop_at = last_step(broken) + chance.choice((1, 2, 4))
        while child.running and last_step(broken) < stop_at:
            pass
        if not child.running:
            break
        child.kill()
        assert child.wait() == -9
        killed += 1
        assert killed < 40
    assert child.wait() == 0, child.err
    assert killed >= 3
    assert clock_free(events(broken)) == clock_free(events(tmp_path / "whole"))
    assert state_hashes(broken, 12) == state_hashes(tmp_path / "whole", 12)
