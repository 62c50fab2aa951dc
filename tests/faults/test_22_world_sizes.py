"""Fault 22: a run goes on with one rank instead of two, and with two again: the same rows in each step. Between
them one rank is asked to stop (fault 14): all save and stop together."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.distributed.compared import alike, at_step
from tests.distributed.started import ended, run, said, start
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe

SLOWLY = {"patch": "tests.distributed.patches:slow_steps"}


def test_two_then_one_then_two(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    argv, folder = ["train", recipe(shard="full")], tmp_path / "run"
    for count, step in ((2, 4), (1, 8)):
        children = start(zygote, argv, tmp_path, count, dict.fromkeys(range(count), SLOWLY))
        children[0].until(lambda step=step: at_step(folder, step))
        children[-1].kill(signal.SIGTERM)
        assert ended(children) == [143] * count, said(children)
        assert said(children).count("Go on with:") == 1
        last = [event for event in events(folder) if event["type"] == "end"][-1]
        assert last["reason"] == "interrupted"
        assert (folder / "checkpoints" / f"step-{last['step']:08d}" / "manifest.json").is_file()
    run(zygote, argv, tmp_path, 2)
    rows = [sorted(e[0] for e in event["examples"]) for event in events(folder) if event["type"] == "step"]
    assert len(rows) == 12 and all(len(one) == 4 for one in rows)
    run(zygote, [*argv, "--output_dir", "whole"], tmp_path, 2)
    alike(tmp_path / "whole", folder, 1e-3)
    went_on = [str(one) for one in json.loads((folder / "run.json").read_text())["resumed"]]
    assert len(went_on) == 2
    assert "ranks: 2 then, 1 now" in went_on[0] and "ranks: 1 then, 2 now" in went_on[1]
