"""Counting what stood before is exact, in memory and over sorted runs in a file."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.data import repeats
from surefoot.data.repeats import Repeats


@pytest.mark.parametrize("run", [1, 7, 100, 1 << 19])
@pytest.mark.parametrize("kinds", [1, 60, 5000])
def test_as_a_set_would_count(monkeypatch: pytest.MonkeyPatch, run: int, kinds: int) -> None:
    monkeypatch.setattr(repeats, "RUN", run)
    counting, seen, before = Repeats(), set(), 0
    assert counting.count() == 0
    for number, kind in enumerate(np.random.default_rng(0).integers(0, kinds, 300).tolist()):
        before += kind in seen
        seen.add(kind)
        counting.add(str(kind).encode())
        if number % 90 == 0:
            assert counting.count() == before
    assert counting.count() == before
