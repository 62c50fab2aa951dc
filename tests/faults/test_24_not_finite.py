"""Fault 24: a loss or gradient that is not finite stops the run before the update, and names step and rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from surefoot.microscope.slide import Opened
from tests.faults.children import Child, Zygote, events, last_step
from tests.faults.conftest import Recipe
from tests.faults.crashes import checkpoint, outcome, tree


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_stops_before_the_update(
    where: str, value: float, zygote: Zygote, recipe: Recipe, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", {"save_steps": 3, "tensors_every": 1}
    done = zygote.run(
        ["train", recipe("whole.yaml", output_dir=str(tmp_path / "whole"), **options)], tmp_path
    )
    assert done.wait() == 0, done.err

    def poisoned() -> Child:
        patch = {"step": 8, "value": value, "where": where}
        return zygote.run(
            ["train", recipe(**options)],
            tmp_path,
            patch="tests.faults.patches_resume:poison",
            patch_args=patch,
        )

    first = poisoned()
    assert (first.wait(), first.out) == (1, "")
    assert "Traceback" not in first.err and first.err.count("surefoot: ") == 1
    cause = f"the loss is {value}" if where == "loss" else "the gradient's norm is "
    message = first.err.partition("surefoot: ")[2]
    assert message.startswith(f"step 8: {cause}") and "; nothing was updated. Rows: " in message
    rows = [name for name, _, _ in step_of(tmp_path / "whole", 8)["examples"]]
    assert all(row in message for row in rows)

    assert last_step(run) == 8
    assert not [event for event in events(run) if event["type"] == "step" and event["step"] == 8]
    (alert,) = [event for event in events(run) if event["type"] == "alert" and event["kind"] == "not finite"]
    assert alert["step"] == 8 and all(row in alert["message"] for row in rows if where == "gradient")
    slide = Opened.load(run / "slides" / "step-00000008").slide
    assert slide.step == 8
    assert not (run / "model").exists()
    for file in ("weights.safetensors", "optimizer.safetensors"):
        kept, wanted = (checkpoint(one, 6, file).read_bytes() for one in (run, tmp_path / "whole"))
        assert kept == wanted
    before = tree(run / "checkpoints")

    again = poisoned()
    assert again.wait() == 1
    assert again.err.partition("surefoot: ")[2] == message
    assert tree(run / "checkpoints") == before
    assert [time["step"] for time in json.loads((run / "run.json").read_text("utf-8"))["resumed"]] == [6]

    healed = zygote.run(["train", recipe(**options)], tmp_path)
    assert healed.wait() == 0, healed.err
    assert outcome(run, 12) == outcome(tmp_path / "whole", 12)


def step_of(run: Path, number: int) -> dict[str, Any]:
    (found,) = [event for event in events(run) if event["type"] == "step" and event["step"] == number]
    return found
