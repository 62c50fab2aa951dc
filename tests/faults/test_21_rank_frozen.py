"""Fault 21: a rank does not answer any more. The watchdog of the others names it, and they end."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.distributed.compared import alike, at_step, same_result
from tests.distributed.started import run, said, start
from tests.faults.children import Zygote
from tests.faults.conftest import Recipe

SLOWLY = {"patch": "tests.distributed.patches:slow_steps"}


def test_it_is_named(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    argv = ["train", recipe(shard="full", ddp_timeout=4)]
    run(zygote, [*argv, "--output_dir", "whole"], tmp_path, 2)
    children = start(zygote, argv, tmp_path, 2, {0: SLOWLY, 1: SLOWLY})
    children[1].until(lambda: at_step(tmp_path / "run", 6))
    children[1].kill(signal.SIGSTOP)
    assert children[0].wait(60.0) == 1, said(children)
    children[1].kill()
    assert f"rank 1 (process {children[1].pid}" in children[0].err
    assert "has stopped answering" in children[0].err
    children[1].wait()
    run(zygote, argv, tmp_path, 2)
    alike(tmp_path / "whole", tmp_path / "run", 0.0)
    same_result(tmp_path / "whole", tmp_path / "run")
