"""Fault 19: one of two ranks is killed in step 7. The other says that it has lost one, and ends; both start again,
and come to the same bits. (By torchrun, which starts them again: tests/distributed/test_launch.py.)"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.distributed.compared import alike, at_step, resumed, same_result
from tests.distributed.started import ended, run, said, start
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe

SLOWLY = {"patch": "tests.distributed.patches:slow_steps"}


@pytest.mark.parametrize("killed", [0, 1])
def test_in_a_step(zygote: Zygote, recipe: Recipe, tmp_path: Path, killed: int) -> None:
    argv = ["train", recipe(shard="full", ddp_timeout=10)]
    run(zygote, [*argv, "--output_dir", "whole"], tmp_path, 2)
    children = start(zygote, argv, tmp_path, 2, {0: SLOWLY, 1: SLOWLY})
    children[killed].until(lambda: at_step(tmp_path / "run", 6))
    children[killed].kill()
    began = time.monotonic()
    statuses = ended(children)
    assert statuses[killed] == -9 and statuses[1 - killed] == 1, said(children)
    assert time.monotonic() - began < 60.0
    assert f"rank {1 - killed} (process {children[1 - killed].pid} on " in children[1 - killed].err
    assert "has lost another one" in children[1 - killed].err
    run(zygote, argv, tmp_path, 2)
    assert resumed(tmp_path / "run") in ([3], [6])
    alike(tmp_path / "whole", tmp_path / "run", 0.0)
    same_result(tmp_path / "whole", tmp_path / "run")
