"""Fault 25: a loss that is far above the usual is never silent: its rows are named, and the step is opened."""

from __future__ import annotations

from pathlib import Path

from surefoot.microscope.slide import Opened
from tests.conftest import write_rows
from tests.faults.children import Zygote, events
from tests.faults.conftest import Recipe
from tests.faults.crashes import crashed, outcome


def test_rows_are_named_and_a_slide_is_there(zygote: Zygote, recipe: Recipe, tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 3}?", "completion": "yes"} for n in range(24)]
    rows[17] = {"prompt": "1?", "completion": "}{qzj][|"}  # among rows that are soon known by heart
    options = {
        "dataset_name": str(write_rows(tmp_path / "spike.jsonl", rows)),
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.05,
        "logging_steps": 100,
    }
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = zygote.run(["train", recipe(output_dir=str(whole), **options)], tmp_path)
    assert done.wait() == 0, done.err
    (alert,) = [event for event in events(whole) if event["type"] == "alert"]
    assert (alert["step"], alert["kind"]) == (9, "high loss")
    assert f"highest: {tmp_path}/spike.jsonl:18" in alert["message"]
    assert alert["message"] in done.err  # said, not only written
    assert Opened.load(whole / "slides" / "step-00000009").slide.opened_because == alert["message"]
    for step in (6, 9):  # what a loss is compared with is remembered
        again = zygote.run(
            ["train", recipe(output_dir=str(crashed(whole, run / str(step), step)), **options)], tmp_path
        )
        assert again.wait() == 0, again.err
        assert outcome(run / str(step), 12) == outcome(whole, 12)
