"""Compiled layers with sharded weights: the steps of layers that are not compiled, within rounding.

Half a minute on two cores: it takes `aot_eager`, which keeps for the backward pass what FSDP2 lets go of.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.started import spawn
from tests.faults.children import Zygote

OFF = 2e-2
"""Of losses and norms: what is compiled rounds to bf16 in other places."""


@pytest.mark.slow
def test_two_processes_take_the_same_steps_compiled(zygote: Zygote, tmp_path: Path) -> None:
    spawn(zygote, "tests.train.compiled_ranks:main", 2, tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["compiled"] == pytest.approx(found["plain"], rel=OFF)
    assert found["plain"][0] > found["plain"][2], "the steps were taken"
