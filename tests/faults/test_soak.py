"""Five kills of the soak, `python -m tests.faults.soak`."""

from __future__ import annotations

from pathlib import Path

from tests.faults.children import Zygote
from tests.faults.soak import soak


def test_five_kills_lose_nothing(zygote: Zygote, tmp_path: Path) -> None:
    found = soak(zygote, tmp_path, 5, 4, steps=50)
    assert found["kills"] == 5 and found["runs"] >= 1
    assert found["lost_checkpoints"] == found["runs_that_differ"] == 0
    assert found["recoveries"] >= 1
