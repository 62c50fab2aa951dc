"""Compiled layers with sharded weights: the steps of layers that are not compiled, within rounding.

Half a minute on two cores: it takes `aot_eager`, which keeps for the backward pass what FSDP2 lets go of.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from tests.train import compiled_ranks

OFF = 2e-2
"""Of losses and norms: what is compiled rounds to bf16 in other places."""


@pytest.mark.slow
def test_two_processes_take_the_same_steps_compiled(tmp_path: Path) -> None:
    mp.spawn(compiled_ranks.main, (tmp_path,), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["compiled"] == pytest.approx(found["plain"], rel=OFF)
    assert found["plain"][0] > found["plain"][2], "the steps were taken"
