"""Fault 31: with another torch, other threads or another device a run goes on, and says that it is not bitwise."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.crashes import crashed


def test_goes_on_and_says_what_is_other(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    done = zygote.run(["train", recipe(output_dir=str(tmp_path / "whole"))], tmp_path)
    assert done.wait() == 0, done.err
    device = json.loads((tmp_path / "whole" / "run.json").read_text("utf-8"))["machine"]["device"]
    said = (
        f"not bitwise the run that was begun: device: {device!r} then, 'abacus' now; threads: 1 then, 2 now; "
        f"torch: {torch.__version__!r} then, '99.0' now"
    )
    for quiet in (False, True):
        run = crashed(tmp_path / "whole", tmp_path / f"run-{quiet}", 6)
        patch = {"threads": 2, "device": "abacus", "torch_version": "99.0"}
        done = zygote.run(
            ["train", recipe(output_dir=str(run), disable_tqdm=quiet)], tmp_path,
            patch="tests.faults.patches_resume:machine", patch_args=patch,
        )  # fmt: skip
        assert done.wait() == 0, done.err
        assert said in done.err
        resumed = json.loads((run / "run.json").read_text("utf-8"))["resumed"]
        assert [(time["step"], time["notes"]) for time in resumed] == [(6, [said])]
        assert [e["step"] for e in events(run) if e["type"] == "step"] == list(range(1, 13))


def test_another_order_of_summation_is_said_too(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    done = zygote.run(["train", recipe(output_dir=str(tmp_path / "whole"))], tmp_path)
    assert done.wait() == 0, done.err
    run = crashed(tmp_path / "whole", tmp_path / "run", 6)
    done = zygote.run(["train", recipe(micro_batch_tokens=10, share_prefixes=False)], tmp_path)
    assert done.wait() == 0, done.err
    assert (
        "not bitwise the run that was begun: micro_batch_tokens: None then, 10 now; share_prefixes"
        in done.err
    )
    steps = [event for event in events(run) if event["type"] == "step"]
    assert [step["micro_batches"] > 1 for step in steps] == [False] * 6 + [True] * 6
